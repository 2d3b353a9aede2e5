"""For tests of ASGI layers, ours and yours: a scripted server, the transparency kit, real servers, a private Redis."""
