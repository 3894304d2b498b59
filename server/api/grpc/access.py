"""Who may call which method: one table, and the interceptor that asks it before any servicer is reached.

What is not in the table is closed.
"""

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import grpc
from grpc import aio

from server.api.grpc.errors import Context, answering
from server.api.grpc.handlers import Answer, around
from server.core.principal import Principal, Scope
from server.service.access import PUBLIC, AccessService, Rule, bearer_token, closed

if TYPE_CHECKING:
    from server.api.grpc.handlers import Handler

_INFER = Rule((Scope.INFER,), metered=True)
_REFERENCES = Rule((Scope.INFER,))
_READ = Rule((Scope.READ,))
_WRITE = Rule((Scope.OPERATE,))
_UPLOAD = Rule((Scope.OPERATE,), metered=True)

GRPC_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "/grpc.health.v1.Health/Check": PUBLIC,
        "/grpc.health.v1.Health/List": PUBLIC,
        "/grpc.health.v1.Health/Watch": PUBLIC,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
        "/medley.v1.InferenceService/Summarize": _INFER,
        "/medley.v1.InferenceService/StreamSummarize": _INFER,
        "/medley.v1.InferenceService/Generate": _INFER,
        "/medley.v1.InferenceService/StreamGenerate": _INFER,
        "/medley.v1.EvaluationService/SubmitReferences": _REFERENCES,
        "/medley.v1.EvaluationService/GetEvaluation": _READ,
        "/medley.v1.AdapterService/GetAdapter": _READ,
        "/medley.v1.AdapterService/ListAdapters": _READ,
        "/medley.v1.AdapterService/GetAdapterCard": _READ,
        "/medley.v1.AdapterService/ListAudit": _READ,
        "/medley.v1.AdapterService/UploadAdapter": _UPLOAD,
        "/medley.v1.AdapterService/ImportAdapter": _UPLOAD,
        "/medley.v1.AdapterService/SetAlias": _WRITE,
        "/medley.v1.AdapterService/DeleteAlias": _WRITE,
        "/medley.v1.AdapterService/Rollback": _WRITE,
        "/medley.v1.AdapterService/DeleteVersion": _WRITE,
        "/medley.v1.AdapterService/UpdateVersion": _WRITE,
        "/medley.v1.RolloutService/ListRollouts": _READ,
        "/medley.v1.RolloutService/GetRollout": _READ,
        "/medley.v1.RolloutService/StartRollout": _WRITE,
        "/medley.v1.RolloutService/PromoteRollout": _WRITE,
        "/medley.v1.RolloutService/RollBackRollout": _WRITE,
    }
)

# Of the call a task answers; the library runs each call in a task of its own and lets nothing be kept on a context.
_PRINCIPAL: ContextVar[Principal] = ContextVar("medley_principal")


def principal_of(_context: Context) -> Principal:
    """Return who makes the call this task answers; not for public methods."""
    return _PRINCIPAL.get()


# The stubs make these classes generic, the library does not.
class AccessInterceptor(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets callers through to the methods they may call; outside of it is at most the interceptor of traces.

    Args:
        access: Who calls, and how much it may.
    """

    def __init__(self, access: AccessService) -> None:
        """Keep the service."""
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        """Return the call's handler with the check before it; the library refuses unknown methods itself."""
        handler = await continuation(handler_call_details)
        rule = GRPC_RULES.get(handler_call_details.method)
        if handler is None or rule is PUBLIC:
            return handler
        token = _token(handler_call_details)
        return around(handler, lambda answer: self._checked(answer, rule, token))

    def _checked(self, inner: object, rule: Rule | None, token: str | None) -> Answer:
        answer = _written(inner) if inspect.isasyncgenfunction(inner) else cast(Answer, inner)

        async def on_call(request: object, context: Context) -> object:
            messages = request if isinstance(request, AsyncIterable) else None
            async with answering(context, messages=messages):
                principal = self._access.authenticate(token, origin(context.peer()))
                if rule is None:
                    raise closed()
                with self._access.entered(rule, principal):
                    _PRINCIPAL.set(principal)
                    return await answer(request, context)

        return on_call


def _written(generate: Callable[[object, Context], AsyncIterator[object]]) -> Answer:
    """Return a coroutine function that writes what a generator function gives."""

    async def write_all(request: object, context: Context) -> None:
        async for message in generate(request, context):
            await context.write(message)

    return write_all


def _token(details: grpc.HandlerCallDetails) -> str | None:
    values = (str(value) for key, value in details.invocation_metadata if key == "authorization")
    return bearer_token(next(values, None))


def origin(peer: str) -> str:
    """Return the address in a peer's name, as ``ipv4:127.0.0.1:50000``; empty where there is none."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""
