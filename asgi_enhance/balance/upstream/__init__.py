"""The ways to a backend: HTTP/1.1 of our own, any httpx2 transport, and WebSocket."""
