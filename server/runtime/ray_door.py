"""The door of a deployment on Ray Serve: behind Serve's proxies and before the replicas.

It reads which adapter a call names, sends the call to a replica by it, and repeats it on another one if the replica
dies before it answered. It knows neither the registry nor the engine, and refuses only what no replica can take.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from server.api.http.asked_adapters import INFERENCE_PATHS, asked_adapters
from server.api.http.config import HttpConfig
from server.api.http.errors import error_body, error_response
from server.api.http.middleware import REQUEST_ID_HEADER, body_limit
from server.api.http.wire.events import event
from server.core.errors import ResourceExhaustedError, UnavailableError
from server.runtime.affinity import adapter_key
from server.runtime.ray_replica import Message, Scope

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MAX_NUM_TRIES = 4
_PART_BYTES = 4 << 20
_HARMLESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PLAIN_SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_LOST = (RayActorError, ReplicaUnavailableError)


class Call(NamedTuple):
    """What is sent to a replica.

    Attributes:
        method: The replica's.
        arguments: Its arguments.
        key: Decides which replica is asked first.
        may_repeat: Whether the call does no harm if two replicas run it.
    """

    method: str
    arguments: tuple[object, ...]
    key: str
    may_repeat: bool


class Replicas:
    """The way to the replicas.

    Args:
        handle: Ray Serve's.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        """Keep the handle."""
        self._handle = handle
        self._base_id: str | None = None

    async def base_id(self) -> str:
        """Return what the base is called."""
        if self._base_id is None:
            self._base_id = str(await self._handle.options(method_name="describe").remote())
        return self._base_id

    async def answers(self, call: Call, is_answer: Callable[[_T], bool]) -> AsyncGenerator[list[_T], None]:
        """Yield what a replica answers, nothing before there is an answer; until then the call may be repeated.

        Args:
            call: What is sent.
            is_answer: Whether an item may no longer be taken back.

        Raises:
            UnavailableError: If the replica died and the call cannot be repeated.
            ResourceExhaustedError: If too many calls wait.
        """
        for num_tries_left in reversed(range(_MAX_NUM_TRIES)):
            is_open = False
            try:
                async with aclosing(self._stream(call)) as stream, aclosing(_opened(stream, is_answer)) as opened:
                    async for items in opened:
                        is_open = True
                        yield items
            except BackPressureError as error:
                raise ResourceExhaustedError("every replica's queue is full; try again later") from error
            except DeploymentUnavailableError as error:
                raise UnavailableError("there are no replicas") from error
            except _LOST as error:
                if is_open or not call.may_repeat or not num_tries_left:
                    raise UnavailableError("the replica that had the request died") from error
                _log.warning("a replica died; the request is sent to another")
            else:
                return

    async def _stream(self, call: Call) -> AsyncGenerator[list[Any], None]:
        handle = self._handle.options(method_name=call.method, stream=True, multiplexed_model_id=call.key)
        response = handle.remote(*call.arguments)
        is_over = False
        try:
            async for items in response:
                yield items
            is_over = True
        finally:
            if not is_over:
                response.cancel()


async def _opened(stream: AsyncIterator[list[_T]], is_answer: Callable[[_T], bool]) -> AsyncGenerator[list[_T], None]:
    """Hold back what comes before the first answer."""
    held: list[_T] | None = []
    async for items in stream:
        if held is None:
            yield items
            continue
        held += items
        if any(is_answer(item) for item in items):
            yield held
            held = None
    if held is not None:
        yield held


class Spool:
    """Takes what a caller sends; what is large goes to Ray's object store, which writes to disk what it cannot hold."""

    def __init__(self) -> None:
        """Begin empty."""
        self._stored: list[object] = []
        self._items: list[bytes] = []
        self._num_bytes = 0

    async def take(self, item: bytes) -> None:
        """Take a message or a piece of a body."""
        self._items.append(item)
        self._num_bytes += len(item)
        if self._num_bytes >= _PART_BYTES:
            items, self._items, self._num_bytes = self._items, [], 0
            self._stored.append(await asyncio.to_thread(ray.put, items))

    @property
    def parts(self) -> list[object]:
        """Everything, in order, as replicas take it."""
        return [*self._stored, self._items]

    @property
    def small(self) -> bytes:
        """Everything where it is small; empty where it is not."""
        return b"" if self._stored else b"".join(self._items)


class HttpDoor:
    """The ASGI application.

    Args:
        replicas: The way to the replicas.
        config: Limits, the same as the replicas'.
    """

    def __init__(self, replicas: Replicas, config: HttpConfig) -> None:
        """Keep the parts."""
        self._replicas = replicas
        self._config = config

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            scope = _at_the_root(scope)
            spool = await self._read(scope["path"], receive)
            if spool is not None:
                await self._pass_on(scope, spool, receive, send)

    async def _read(self, path: str, receive: Any) -> Spool | None:
        """Return the body, cut off just beyond its limit so that the replica refuses it; None if the caller is gone."""
        spool, num_left = Spool(), body_limit(path, self._config) + 1
        while num_left > 0:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")[:num_left]
            num_left -= len(chunk)
            await spool.take(chunk)
            if not message.get("more_body", False):
                break
        return spool

    async def _pass_on(self, scope: Scope, spool: Spool, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get(REQUEST_ID_HEADER, "")
        content_type: str | None = None
        try:
            call = await self._call(scope, spool, headers)
            async with aclosing(self._replicas.answers(call, _is_body)) as answers:
                async for message in (message async for messages in answers for message in messages):
                    if message["type"] == "http.response.start":
                        content_type = _start(message, request_id)
                    await send(message)
        except Exception as error:
            if content_type is None:
                await error_response(error, request_id, self._config.retry_after_s)(scope, receive, send)
            elif content_type.startswith("text/event-stream"):
                await send({"type": "http.response.body", "body": event(error_body(error, request_id))})
            else:
                raise

    async def _call(self, scope: Scope, spool: Spool, headers: dict[str, str]) -> Call:
        path = scope["path"]
        plain = {key: scope[key] for key in _PLAIN_SCOPE if key in scope}
        plain |= {"client": scope.get("client"), "server": scope.get("server"), "asgi": {"version": "3.0"}}
        named = asked_adapters(path, spool.small, await self._replicas.base_id()) if path in INFERENCE_PATHS else ()
        may_repeat = (
            scope["method"] in _HARMLESS_METHODS or path in INFERENCE_PATHS or bool(headers.get("idempotency-key"))
        )
        return Call("http", (plain, spool.parts), adapter_key(named), may_repeat)


def _at_the_root(scope: Scope) -> Scope:
    """Return the scope as if the application stood at ``/``: limits, scopes of keys and routes go by the whole path."""
    prefix = scope.get("root_path", "").rstrip("/")
    if not prefix or not scope["path"].startswith(f"{prefix}/"):
        return {**scope, "root_path": ""}
    raw_path = (scope.get("raw_path") or b"")[len(prefix.encode()) :]
    return {**scope, "path": scope["path"][len(prefix) :], "raw_path": raw_path, "root_path": ""}


def _is_body(message: Message) -> bool:
    return bool(message["type"] == "http.response.body")


def _start(message: Message, request_id: str) -> str:
    """Drop the answer's id where it is the one that the proxy adds anyway, and return the answer's type."""
    headers: Sequence[tuple[bytes, bytes]] = message["headers"]
    own = (REQUEST_ID_HEADER.encode(), request_id.encode("latin-1"))
    message["headers"] = [(name, value) for name, value in headers if (name.lower(), value) != own]
    return next((value.decode("latin-1") for name, value in headers if name.lower() == b"content-type"), "")


async def _live(receive: Any, send: Any) -> None:
    """Say that there is nothing to start and nothing to stop."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
