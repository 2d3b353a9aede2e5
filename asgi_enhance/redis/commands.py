"""What may run on a connection that others share."""

from asgi_enhance.errors import ConfigError

# They wait for somebody else, and all that comes after them waits too.
BLOCKING = {
    *("BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"),
    *("MONITOR", "SYNC", "PSYNC", "DEBUG"),
}
# They change what the connection is, for everybody on it.
STATEFUL = {
    *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
    *("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "SELECT", "AUTH", "HELLO", "RESET", "QUIT"),
    *("ASKING", "READONLY", "READWRITE", "REPLCONF"),
}
# The same, by their second word.
STATEFUL_SUBCOMMANDS = {
    "CLIENT": {"REPLY", "TRACKING", "CACHING", "SETNAME", "SETINFO", "NO-EVICT", "NO-TOUCH", "CAPA"},
    "SCRIPT": {"DEBUG"},
}
# They block only with this word among their arguments.
BLOCKING_WORD = {"XREAD": "BLOCK", "XREADGROUP": "BLOCK"}

# Names whose arguments matter: everything else is judged by its name, once.
JUDGED_BY_ARGUMENTS = frozenset(STATEFUL_SUBCOMMANDS) | frozenset(BLOCKING_WORD)


def check(command: tuple[object, ...]) -> bool:
    """`ConfigError` if the command cannot share a connection; True if its name alone says that it can."""
    name = word(command[0])
    if not name.isascii() or not name.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise ConfigError(f"execute(): {name!r} is not a command; pass its words as arguments of their own")
    if name in BLOCKING:
        raise refusal(name, "blocks the connection")
    if name in STATEFUL:
        raise refusal(name, "changes the state of the connection")
    if name not in JUDGED_BY_ARGUMENTS:
        return True
    second = word(command[1]) if len(command) > 1 else ""
    if second in STATEFUL_SUBCOMMANDS.get(name, ()):
        raise refusal(f"{name} {second}", "changes the state of the connection")
    if (blocking := BLOCKING_WORD.get(name)) is not None:
        options = [word(argument) for argument in command[1:]]
        if blocking in options[: options.index("STREAMS") if "STREAMS" in options else None]:
            raise refusal(f"{name} {blocking}", "blocks the connection")
    return False


def word(argument: object) -> str:
    text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
    return text.upper()


def refusal(name: str, why: str) -> ConfigError:
    return ConfigError(f"execute(): {name} {why} that all commands share; use `.client` (or `subscribe()`) for it")


# Where the first key is, for the commands that do not begin with it. On a cluster it decides the node.

# No key: any node will do. (PUBLISH reaches all of a cluster.)
KEYLESS = frozenset(
    (
        *("ACL", "BGREWRITEAOF", "BGSAVE", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL"),
        *(
            "FLUSHDB",
            "FUNCTION",
            "INFO",
            "KEYS",
            "LASTSAVE",
            "LATENCY",
            "LOLWUT",
            "MODULE",
            "PING",
            "PUBLISH",
            "PUBSUB",
        ),
        *("RANDOMKEY", "ROLE", "SAVE", "SCAN", "SCRIPT", "SHUTDOWN", "SLOWLOG", "SWAPDB", "TIME"),
    )
)
# The position of the first key.
KEY_AT = {"BITOP": 2, "MEMORY": 2, "OBJECT": 2, "XGROUP": 2, "XINFO": 2, "MIGRATE": 3}
# The position of the number of keys, which follow it.
COUNT_AT = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"), 2),
    **dict.fromkeys(("LMPOP", "SINTERCARD", "ZDIFF", "ZINTER", "ZINTERCARD", "ZMPOP", "ZUNION"), 1),
}
# The word the keys follow.
KEY_AFTER = {"XREAD": "STREAMS", "XREADGROUP": "STREAMS"}


def first_key(command: tuple[object, ...]) -> bytes | None:
    """The key that decides which node of a cluster a command belongs to; None if any will do."""
    name = word(command[0])
    if name in KEYLESS:
        return None
    at = KEY_AT.get(name, 1)
    if (count_at := COUNT_AT.get(name)) is not None:
        if len(command) <= count_at or str(command[count_at]) == "0" or command[count_at] == b"0":
            return None
        at = count_at + 1
    elif (after := KEY_AFTER.get(name)) is not None:
        words = [word(argument) for argument in command]
        at = words.index(after) + 1 if after in words else len(command)
    if at >= len(command):
        return None  # the server will say what is wrong with it
    key = command[at]
    return key if isinstance(key, bytes) else str(key).encode()
