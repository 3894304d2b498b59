"""vLLM's routes to load and unload a LoRA, for scripts written for it: its bodies, its statuses, its words.

A name is loaded when it has a ready version. Loading makes one, with the alias ``stable``; unloading retires all of
them, and answers when the requests that run on them have ended.

Source:
    https://docs.vllm.ai/en/stable/features/lora/#dynamically-serving-lora-adapters
"""

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from adapters.errors import AdapterNotFoundError
from adapters.registry import DEFAULT_ALIAS, VersionState
from server.api.http.call import Calling, until_disconnect
from server.api.http.errors import refusals
from server.api.http.wire.adapter_bodies import LoadBody, UnloadBody
from server.core.errors import ErrorCode, InvalidArgumentError, NotFoundError
from server.core.principal import Principal
from server.service.adapters import AdapterCatalog
from server.service.uploads import UploadService


def vllm_routes(catalog: AdapterCatalog, uploads: UploadService) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["vllm"], responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})

    @router.post(
        "/v1/load_lora_adapter",
        response_class=Response,
        responses=refusals(ErrorCode.FAILED_PRECONDITION, ErrorCode.DEADLINE_EXCEEDED, with_body=True),
    )
    async def load_lora_adapter(request: Request, principal: Calling, body: LoadBody) -> PlainTextResponse:
        """Fetch an adapter from a source and serve it under a name."""
        if not body.load_inplace and await _ready_versions(catalog, principal, body.lora_name):
            raise InvalidArgumentError(
                f"The lora adapter '{body.lora_name}' has already been loaded. "
                "If you want to load the adapter in place, set 'load_inplace' to True.",
                param="lora_name",
            )
        source = f"file://{body.lora_path}" if body.lora_path.startswith("/") else body.lora_path
        fetching = uploads.from_source(principal, body.lora_name, source, alias=DEFAULT_ALIAS)
        await until_disconnect(request.receive, fetching)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter",
        response_class=Response,
        responses=refusals(ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION, with_body=True),
    )
    async def unload_lora_adapter(principal: Calling, body: UnloadBody) -> PlainTextResponse:
        """Retire every version of a name."""
        versions = await _ready_versions(catalog, principal, body.lora_name)
        if not versions:
            raise NotFoundError(f"The lora adapter '{body.lora_name}' cannot be found.", param="lora_name")
        for version in versions:
            await catalog.delete(principal, body.lora_name, version, force=True)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


async def _ready_versions(catalog: AdapterCatalog, principal: Principal, name: str) -> tuple[int, ...]:
    try:
        adapter = await catalog.get(principal, name)
    except AdapterNotFoundError:
        return ()
    return tuple(version.version for version in adapter.versions if version.state is VersionState.READY)
