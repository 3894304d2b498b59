"""Adapters over HTTP: list, show, promote, roll back, label, delete, and who did so. Uploads have their own module."""

from fastapi import APIRouter
from starlette.responses import Response

from adapters.registry import DEFAULT_ALIAS
from server.api.http.call import Calling
from server.api.http.errors import refusals
from server.api.http.wire.adapter_bodies import (
    AliasBody,
    AliasPath,
    ForceQuery,
    IdempotencyKey,
    LabelBody,
    LimitQuery,
    NamePath,
    RollbackBody,
    TagQuery,
    VersionPath,
)
from server.api.http.wire.adapters import (
    AdapterList,
    AdapterWire,
    AuditList,
    VersionWire,
    adapter_wire,
    audit_list,
    version_wire,
)
from server.core.errors import ErrorCode
from server.service.adapters import AdapterCatalog

_UNKNOWN = refusals(ErrorCode.NOT_FOUND)
_CHANGES = refusals(ErrorCode.NOT_FOUND, ErrorCode.ALREADY_EXISTS, ErrorCode.FAILED_PRECONDITION, with_body=True)
_MARKDOWN = "text/markdown"


def adapter_read_routes(catalog: AdapterCatalog) -> APIRouter:
    """Return the router of what only reads."""
    router = APIRouter(tags=["adapters"])

    @router.get("/v1/adapters")
    async def list_adapters(principal: Calling, tag: TagQuery = "") -> AdapterList:
        """List the adapters that the caller sees, by name."""
        return {"adapters": [adapter_wire(adapter) for adapter in await catalog.list(principal, tag=tag)]}

    @router.get("/v1/adapters/{name}", responses=_UNKNOWN)
    async def get_adapter(principal: Calling, name: NamePath) -> AdapterWire:
        """Show one adapter with all its versions, retired ones too, and its aliases."""
        return adapter_wire(await catalog.get(principal, name))

    @router.get("/v1/adapters/{name}/versions/{version}", responses=_UNKNOWN)
    async def get_version(principal: Calling, name: NamePath, version: VersionPath) -> VersionWire:
        """Show one version."""
        return version_wire(await catalog.version(principal, name, version))

    @router.get(
        "/v1/adapters/{name}/versions/{version}/card",
        response_class=Response,
        responses=refusals(ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION)
        | {200: {"content": {_MARKDOWN: {"schema": {"type": "string"}}}}},
    )
    async def get_card(principal: Calling, name: NamePath, version: VersionPath) -> Response:
        """Return a version's card, as its maker wrote it; nothing when there is none."""
        card = await catalog.card(principal, name, version)
        # Strangers write cards: a browser must not take one for a page of ours.
        return Response(card, media_type=_MARKDOWN, headers={"x-content-type-options": "nosniff"})

    @router.get("/v1/adapters/{name}/audit", responses=_UNKNOWN)
    async def list_adapter_audit(principal: Calling, name: NamePath, limit: LimitQuery = 100) -> AuditList:
        """Return who changed an adapter, and how, the newest change first."""
        return audit_list(await catalog.audit(principal, name, limit))

    @router.get("/v1/audit")
    async def list_audit(principal: Calling, limit: LimitQuery = 100) -> AuditList:
        """Return who changed what, the newest change first; for callers who see every adapter."""
        return audit_list(await catalog.audit(principal, None, limit))

    return router


def adapter_change_routes(catalog: AdapterCatalog) -> APIRouter:
    """Return the router of what changes adapters that are there."""
    router = APIRouter(tags=["adapters"], responses=_CHANGES)

    @router.patch("/v1/adapters/{name}/versions/{version}")
    async def label_version(
        principal: Calling, name: NamePath, version: VersionPath, body: LabelBody, key: IdempotencyKey = ""
    ) -> VersionWire:
        """Change a version's tags, its description or both."""
        return version_wire(
            await catalog.label(
                principal,
                name,
                version,
                tags=None if body.tags is None else tuple(body.tags),
                description=body.description,
                idempotency_key=key,
            )
        )

    @router.delete("/v1/adapters/{name}/versions/{version}")
    async def delete_version(
        principal: Calling, name: NamePath, version: VersionPath, *, force: ForceQuery = False, key: IdempotencyKey = ""
    ) -> AdapterWire:
        """Retire a version for good; refused while an alias or a running request holds it, unless forced."""
        return adapter_wire(await catalog.delete(principal, name, version, force=force, idempotency_key=key))

    @router.put("/v1/adapters/{name}/aliases/{alias}")
    async def set_alias(
        principal: Calling, name: NamePath, alias: AliasPath, body: AliasBody, key: IdempotencyKey = ""
    ) -> AdapterWire:
        """Point an alias at a ready version: new requests get it at once, running ones end on what they began with."""
        return adapter_wire(await catalog.set_alias(principal, name, alias, body.version, idempotency_key=key))

    @router.delete("/v1/adapters/{name}/aliases/{alias}")
    async def delete_alias(
        principal: Calling, name: NamePath, alias: AliasPath, key: IdempotencyKey = ""
    ) -> AdapterWire:
        """Remove an alias; the versions stay."""
        return adapter_wire(await catalog.delete_alias(principal, name, alias, idempotency_key=key))

    @router.post("/v1/adapters/{name}/rollback")
    async def rollback(
        principal: Calling, name: NamePath, body: RollbackBody | None = None, key: IdempotencyKey = ""
    ) -> AdapterWire:
        """Point an alias back at its latest earlier target that is still ready."""
        alias = DEFAULT_ALIAS if body is None else body.alias
        return adapter_wire(await catalog.rollback(principal, name, alias, idempotency_key=key))

    return router
