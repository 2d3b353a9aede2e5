"""What every layer needs of ASGI: types, scopes, messages, problems, tasks, lifespan. Knows no capability."""
