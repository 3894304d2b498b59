"""``GET /v1/status`` and ``GET /v1/keys/self``: what answers here, and what the caller may ask of it."""

from fastapi import APIRouter
from typing_extensions import TypedDict

from server.api.http.call import Calling
from server.core.principal import Scope
from server.service.access import AccessService
from server.service.status import StatusService


class KeyWire(TypedDict):
    """The caller's key, without its secret.

    ``scopes`` are all that it may do, those included in others too; ``adapters`` are the patterns of the names that
    exist for it; ``name`` is empty and ``is_open`` true where the server asks for no key; ``expires_s`` counts from
    the epoch.
    """

    who: str
    name: str
    is_open: bool
    scopes: list[str]
    adapters: list[str]
    sees_all: bool
    expires_s: float | None


class StatusWire(TypedDict):
    """The engine, its limits and what it is doing; ``resident`` are the digests of the adapters on the device."""

    ready: bool
    reason: str
    base: str
    engine: str
    device: str
    dtype: str
    quantization: str
    max_num_seqs: int
    max_new_tokens: int
    max_loras: int
    max_soft_prompts: int
    num_waiting: int
    num_running: int
    resident: list[str]


def status_routes(status: StatusService, access: AccessService) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["operations"])

    @router.get("/v1/status")
    async def get_status() -> StatusWire:
        """Show what serves here, what it is doing, and which adapters are on its device."""
        now = status.status()
        return {
            "ready": now.readiness.ready,
            "reason": now.readiness.reason,
            "base": now.info.base.model_id,
            "engine": now.info.name,
            "device": now.info.device,
            "dtype": now.info.dtype,
            "quantization": now.info.quantization,
            "max_num_seqs": now.info.max_num_seqs,
            "max_new_tokens": now.info.max_new_tokens,
            "max_loras": now.info.max_loras,
            "max_soft_prompts": now.info.max_soft_prompts,
            "num_waiting": now.stats.num_waiting,
            "num_running": now.stats.num_running,
            "resident": list(now.stats.resident),
        }

    @router.get("/v1/keys/self")
    async def get_own_key(principal: Calling) -> KeyWire:
        """Show what the key that calls may do."""
        key = access.key_of(principal)
        return {
            "who": principal.who,
            "name": "" if key is None else key.name,
            "is_open": principal.is_anonymous,
            "scopes": [str(scope) for scope in Scope if principal.may(scope)],
            "adapters": list(principal.patterns),
            "sees_all": principal.sees_all,
            "expires_s": None if key is None else key.expires_s,
        }

    return router
