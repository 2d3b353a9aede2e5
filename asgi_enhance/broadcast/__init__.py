"""Real-time messages over WebSocket and Server-Sent Events, to groups, clients and everyone, over many processes."""

from asgi_enhance.broadcast.core import RealTimeStreamProcessor
from asgi_enhance.broadcast.layer import BroadcastRouter
from asgi_enhance.broadcast.policy import History, Limits

__all__ = ["BroadcastRouter", "History", "Limits", "RealTimeStreamProcessor"]
