"""The transport over Redis: every process that has listeners for a message hears it.

Groups with a history are followed (see `follower`): publishing is one script, and the publisher's own process hears of
it like all others, so that everybody has the same order. Everything else is delivered here at once and published for
the other processes with the name of this one, which ignores it when it comes back: it needs no Redis to reach the
clients of this process, and reaches others at most once. All channels are sharded: on a Cluster they stay in one slot.
"""

import asyncio
import logging
import secrets
from functools import partial
from importlib.resources import files

from asgi_enhance.asgi.tasks import Tasks
from asgi_enhance.broadcast.follower import Follower, entry_of
from asgi_enhance.broadcast.hub import Group, Hub
from asgi_enhance.broadcast.keys import GroupKeys, client_channel, everyone_channel
from asgi_enhance.broadcast.log import Entry, Position, Start, new_epoch
from asgi_enhance.broadcast.policy import HistoryRules
from asgi_enhance.broadcast.presence import Presence
from asgi_enhance.broadcast.wire import Publication, pack, unpack
from asgi_enhance.errors import RedisUnavailable
from asgi_enhance.redis import RedisManager, Script, Subscription

logger = logging.getLogger("asgi_enhance.broadcast")

LINGER = 2.0
"""Seconds a group without members stays subscribed: a page that reloads finds everything in place."""

CHECK = 10.0
"""Seconds between looks at where the logs in Redis are: the last resort against a loss nobody has noticed."""


class RedisTransport:
    """Groups, clients and everyone, over all processes that share a Redis and a key prefix."""

    def __init__(self, hub: Hub, history: HistoryRules, manager: RedisManager, tasks: Tasks) -> None:
        self._hub = hub
        self._rules = history
        self._manager = manager
        self._tasks = tasks
        self._node = secrets.token_hex(6)
        self._followers: dict[str, Follower] = {}
        self._subscriptions: dict[str, Subscription] = {}  # of groups without history
        self._clients: dict[str, tuple[Subscription, int]] = {}  # with the number of connections
        self._everyone: Subscription | None = None
        self._publish = _script(manager, "publish")
        self._history = _script(manager, "history")
        self._presence = Presence(hub, manager, self._node, _script(manager, "presence"), _script(manager, "present"))
        self._check_at = 0.0
        self._checking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._everyone = self._manager.subscribe(everyone_channel(self._manager), self._to_everyone, sharded=True)
        self._tasks.spawn(self._presence.run(), name="broadcast presence")

    async def stop(self) -> None:
        await self._presence.flush()
        for follower in self._followers.values():
            await follower.close()
        for subscription in self._subscriptions.values():
            await subscription.close()
        for subscription, _ in self._clients.values():
            await subscription.close()
        if self._everyone is not None:
            await self._everyone.close()

    # -- who listens here

    async def attach(self, group: Group, since: Start) -> None:
        rule = self._rules(group.name)
        if rule is None:
            subscription = self._subscriptions.get(group.name)
            if subscription is None:
                channel = GroupKeys(self._manager, group.name).channel
                subscription = self._manager.subscribe(channel, partial(self._to_group, group), sharded=True)
                self._subscriptions[group.name] = subscription
            await self._settled(subscription)
            return
        follower = self._followers.get(group.name)
        if follower is None:
            follower = self._followers[group.name] = Follower(
                group, rule, manager=self._manager, history=self._history, hub=self._hub, tasks=self._tasks
            )
        await follower.ready(since)

    def detach(self, group: Group) -> None:
        group.empty_since = self._hub.shared.loop.time()

    async def attach_client(self, client_id: str) -> None:
        subscription, count = self._clients.get(client_id, (None, 0))
        if subscription is None:
            channel = client_channel(self._manager, client_id)
            subscription = self._manager.subscribe(channel, partial(self._to_client, client_id), sharded=True)
        self._clients[client_id] = (subscription, count + 1)
        try:
            await self._settled(subscription)
        except BaseException:  # cancelled
            self.detach_client(client_id)
            raise

    def detach_client(self, client_id: str) -> None:
        subscription, count = self._clients[client_id]
        if count > 1:
            self._clients[client_id] = (subscription, count - 1)
        else:
            del self._clients[client_id]
            self._tasks.spawn(subscription.close(), name=f"broadcast unsubscribe {client_id}")

    def entered(self, group: Group, client_id: str) -> None:
        self._presence.entered(group.name, client_id)

    def left(self, group: Group, client_id: str) -> None:
        self._presence.left(group.name, client_id)

    # -- messages out

    async def publish(self, group: str, data: bytes, key: str | None, idempotency_key: str | None) -> Position | None:
        rule = self._rules(group)
        keys = GroupKeys(self._manager, group)
        if rule is None:
            await self._hub.rounds.room(self._hub.groups.get(group))
            found = self._hub.groups.get(group)
            if found is not None:
                self._hub.rounds.to_group(found, Publication(data, key, group))
            await self._tell_others(keys.channel, data, key)
            return None
        names = [keys.log, keys.meta, keys.channel]
        if idempotency_key is not None:
            names.append(keys.idempotency + idempotency_key)
        ttl, meta_ttl = int(1000 * rule.ttl), int(1000 * rule.meta_ttl)
        answer: bytes = await self._publish(
            keys=names,
            args=[pack(data, key), rule.size, ttl, meta_ttl, new_epoch(), secrets.randbits(32)],
            idempotent=idempotency_key is not None,
        )
        return Position.parse(answer.decode())

    async def direct(self, client_id: str, data: bytes, key: str | None) -> bool:
        here = self._hub.to_client(client_id, Publication(data, key))
        there = await self._tell_others(client_channel(self._manager, client_id), data, key)
        return here + there > 0

    async def everyone(self, data: bytes, key: str | None) -> None:
        await self._hub.rounds.room(None)
        self._hub.to_everyone(Publication(data, key))
        await self._tell_others(everyone_channel(self._manager), data, key)

    async def history(self, group: str) -> tuple[Position, list[Entry]] | None:
        rule = self._rules(group)
        if rule is None:
            return None
        keys = GroupKeys(self._manager, group)
        epoch, offset, rows = await self._history(
            keys=[keys.log, keys.meta], args=["", 0, "", new_epoch(), int(1000 * rule.meta_ttl)], idempotent=True
        )
        return Position(epoch.decode(), offset), [entry_of(id, fields) for id, fields in rows]

    async def presence(self, group: str) -> list[str]:
        return await self._presence.clients(group)

    # -- messages in

    def _to_group(self, group: Group, payload: bytes) -> None:
        if (message := self._foreign(payload)) is not None:
            self._hub.rounds.limit()
            self._hub.rounds.to_group(group, message)

    def _to_client(self, client_id: str, payload: bytes) -> None:
        if (message := self._foreign(payload)) is not None:
            self._hub.to_client(client_id, message)

    def _to_everyone(self, payload: bytes) -> None:
        if (message := self._foreign(payload)) is not None:
            self._hub.rounds.limit()
            self._hub.to_everyone(message)

    def _foreign(self, payload: bytes) -> Publication | None:
        """A message from another process; None for one of our own, which has been delivered."""
        node, _, blob = payload.partition(b"\0")
        return Publication(*unpack(blob)) if node.decode() != self._node else None

    # -- life

    def sweep(self, now: float) -> None:
        for group in tuple(self._hub.groups.values()):
            if group.users == 0 and now - group.empty_since > LINGER:
                self._hub.forget(group)
                held = self._followers.pop(group.name, None) or self._subscriptions.pop(group.name, None)
                if held is not None:
                    self._tasks.spawn(held.close(), name=f"broadcast unsubscribe {group.name}")
        self._presence.sweep(now)
        if now >= self._check_at and self._checking is None and self._manager.available:
            self._check_at = now + CHECK
            self._checking = self._tasks.spawn(self._check(), name="broadcast position check")

    async def _check(self) -> None:
        try:
            for follower in tuple(self._followers.values()):
                epoch, offset = await self._manager.execute("HMGET", follower.keys.meta, "e", "s", idempotent=True)
                if epoch is not None:
                    follower.check(Position(epoch.decode(), int(offset or 0)))
        except RedisUnavailable:
            pass  # the subscriptions notice that too, and catch up when it is back
        finally:
            self._checking = None

    async def _tell_others(self, channel: str, data: bytes, key: str | None) -> int:
        """Publish for the other processes. How many processes listen, this one included."""
        payload = self._node.encode() + b"\0" + pack(data, key)
        try:
            return int(await self._manager.execute("SPUBLISH", channel, payload))
        except RedisUnavailable:
            pass  # the manager says so once, and counts
        except Exception:
            logger.exception("a message could not be published on %s", channel)
        self._hub.shared.stats.remote_failures += 1
        return 0

    async def _settled(self, subscription: Subscription) -> None:
        """Wait until a subscription stands; while Redis is away it stands later, and this process does without."""
        if not subscription.is_ready and self._manager.available:
            try:
                await subscription.ready()
            except RedisUnavailable:
                self._hub.shared.stats.remote_failures += 1


def _script(manager: RedisManager, name: str) -> Script:
    return manager.script(files(__package__).joinpath(f"{name}.lua").read_text())
