"""The names of everything in Redis. What one script touches shares a hash tag: a Cluster keeps it together."""

from asgi_enhance.redis import RedisManager


class GroupKeys:
    """The keys and the channel of one group."""

    __slots__ = ("channel", "idempotency", "log", "meta", "presence")

    def __init__(self, manager: RedisManager, group: str) -> None:
        base = manager.key("broadcast", "{group:" + _tag(group) + "}")
        self.channel = base + ":channel"
        self.log = base + ":log"
        self.meta = base + ":meta"
        self.presence = base + ":presence"
        self.idempotency = base + ":key:"


def client_channel(manager: RedisManager, client_id: str) -> str:
    return manager.key("broadcast", "{client:" + _tag(client_id) + "}", "channel")


def everyone_channel(manager: RedisManager) -> str:
    return manager.key("broadcast", "{all}", "channel")


def _tag(name: str) -> str:
    """A brace in a name would end the hash tag."""
    if "{" in name or "}" in name or "%" in name:
        return name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return name
