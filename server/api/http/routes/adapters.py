"""Adapters over HTTP: upload one version as multipart, list, show."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.api.http.multipart import MultipartReader, PartData
from server.api.http.wire.adapters import AdapterList, AdapterWire, VersionWire, adapter_wire, version_wire
from server.core.errors import InvalidArgumentError
from server.service.adapters import AdapterCatalog

_MAX_ALIAS_BYTES = 64
# The framework does not see the body, as it is read in a stream; the page in /docs still shows it.
_UPLOAD_SCHEMA: dict[str, object] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "alias": {"type": "string"},
                    },
                    "required": ["files"],
                }
            }
        },
    }
}


def adapter_routes(catalog: AdapterCatalog) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["adapters"])

    @router.post("/v1/adapters/{name}/versions", status_code=201, openapi_extra=_UPLOAD_SCHEMA)
    async def upload_version(request: Request, name: str, alias: Annotated[str | None, Query()] = None) -> VersionWire:
        """Upload a PEFT folder's files as one new version; the same files again give the same version."""
        parts = MultipartReader(request.headers.get("content-type", "")).read(request.stream())
        async with catalog.stage() as staged:
            form_alias = b""
            async for part in parts:
                if part.file_name:
                    await staged.write(part.file_name, part.data)
                else:
                    form_alias += _alias_bytes(part, len(form_alias))
            chosen = form_alias.decode("utf-8", "replace") or alias
            return version_wire(await catalog.commit(staged, name, chosen))

    @router.get("/v1/adapters")
    async def list_adapters() -> AdapterList:
        """List all adapters."""
        return {"adapters": [adapter_wire(adapter) for adapter in await catalog.list()]}

    @router.get("/v1/adapters/{name}")
    async def get_adapter(name: str) -> AdapterWire:
        """Show one adapter."""
        return adapter_wire(await catalog.get(name))

    return router


def _alias_bytes(part: PartData, num_bytes_before: int) -> bytes:
    if part.field != "alias":
        raise InvalidArgumentError(f"unknown field {part.field[:64]!r}; files need a file name", param="alias")
    if num_bytes_before + len(part.data) > _MAX_ALIAS_BYTES:
        raise InvalidArgumentError(f"alias has more than {_MAX_ALIAS_BYTES} bytes", param="alias")
    return part.data
