"""The gRPC side of a door: one method for each of ours, as Ray Serve's proxy calls them.

How a call ended is told through Serve's context, with the trailers of a whole answer; a stream's trailers are lost,
as Serve ends a stream by an exception, which has a status and words only.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

from ray.serve.grpc_util import RayServegRPCContext

from server.api.grpc.errors import CODE_KEY, GRPC_STATUSES
from server.api.grpc.in_process import METHODS, Ended, Method
from server.core.errors import ErrorCode, MedleyError, code_of
from server.runtime.affinity import adapter_key
from server.runtime.ray_door import Call, Replicas, Spool

_log = logging.getLogger(__name__)
_IDEMPOTENCY_FIELD = "idempotency_key"
_HARMLESS = ("Get", "List")
_INFERENCE = "/medley.v1.InferenceService/"
_STATUSES = {status.value[0]: status for status in GRPC_STATUSES.values()}


class Answer(NamedTuple):
    """A message that is bytes already; Ray Serve asks it for them."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name is protobuf's
        """Return the bytes."""
        return self.data


class GrpcDoor:
    """Answers calls for the methods of :func:`add_methods`.

    Args:
        replicas: The way to the replicas.
    """

    def __init__(self, replicas: Replicas) -> None:
        """Keep the way."""
        self._replicas = replicas

    async def whole(self, name: str, message: Any, context: RayServegRPCContext) -> Answer:
        """Answer a call that has one answer."""
        data, ended = b"", None
        try:
            call = await _call(name, message, context)
            # Nothing of it has reached the caller before the end, so that all of it can be repeated.
            async with aclosing(self._replicas.answers(call, _is_end)) as answers:
                async for item in (item async for items in answers for item in items):
                    if isinstance(item, bytes):
                        data = item
                    else:
                        ended = item
        except Exception as error:
            ended = _ended_by(error)
        assert ended is not None
        _tell(context, ended)
        return Answer(data)

    async def stream(self, name: str, message: Any, context: RayServegRPCContext) -> AsyncGenerator[Answer, None]:
        """Answer a call that has many answers.

        Raises:
            EndedError: If it ended otherwise than well; Ray Serve tells the caller what the context says.
        """
        ended = None
        try:
            call = await _call(name, message, context)
            async with aclosing(self._replicas.answers(call, _is_message)) as answers:
                async for item in (item async for items in answers for item in items):
                    if isinstance(item, bytes):
                        yield Answer(item)
                    else:
                        ended = item
        except Exception as error:
            ended = _ended_by(error)
        assert ended is not None
        if ended.code:
            _tell(context, ended)
            raise EndedError(ended.details)


class EndedError(Exception):
    """A stream ended otherwise than well."""


def add_methods(door: type) -> None:
    """Give a class one method for each of ours; its instances have a :class:`GrpcDoor` as ``grpc``."""
    for name, method in METHODS.items():
        setattr(door, name, _streaming(name) if method.gives_stream else _whole(name))


# Ray Serve looks for the parameter's name.
def _whole(name: str) -> Any:
    async def whole(self: Any, message: Any, grpc_context: RayServegRPCContext) -> Answer:
        door: GrpcDoor = self.grpc
        return await door.whole(name, message, grpc_context)

    return whole


def _streaming(name: str) -> Any:
    async def stream(self: Any, message: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Answer]:
        door: GrpcDoor = self.grpc
        async with aclosing(door.stream(name, message, grpc_context)) as answers:
            async for answer in answers:
                yield answer

    return stream


async def _call(name: str, message: Any, context: RayServegRPCContext) -> Call:
    method, spool = METHODS[name], Spool()
    key, may_repeat = "", _is_harmless(name, method)
    if method.takes_stream:
        async for each in message:
            await spool.take(each.SerializeToString())
    else:
        may_repeat = may_repeat or bool(getattr(message, _IDEMPOTENCY_FIELD, ""))
        key = adapter_key(tuple(message.adapters)) if method.path.startswith(_INFERENCE) else ""
        await spool.take(message.SerializeToString())
    metadata = list(context.invocation_metadata())
    return Call("grpc", (name, spool.parts, metadata, context.peer()), key, may_repeat)


def _is_end(item: bytes | Ended) -> bool:
    return isinstance(item, Ended)


def _is_message(item: bytes | Ended) -> bool:
    return isinstance(item, bytes)


def _is_harmless(name: str, method: Method) -> bool:
    return method.path.startswith(_INFERENCE) or name.startswith(_HARMLESS)


def _ended_by(error: Exception) -> Ended:
    code = code_of(error)
    if code is ErrorCode.INTERNAL:
        _log.error("call failed", exc_info=error)
    message = error.message if isinstance(error, MedleyError) else "internal error"
    return Ended(GRPC_STATUSES[code].value[0], message, ((CODE_KEY, str(code)),))


def _tell(context: RayServegRPCContext, ended: Ended) -> None:
    if ended.code:
        context.set_code(_STATUSES[ended.code])
        context.set_details(ended.details)
    context.set_trailing_metadata(list(ended.trailers))
