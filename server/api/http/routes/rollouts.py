"""Rollouts over HTTP: begin, list, show, and decide by hand."""

import http

from fastapi import APIRouter

from server.api.http.call import Calling
from server.api.http.errors import refusals
from server.api.http.wire.adapter_bodies import IdempotencyKey, NamePath
from server.api.http.wire.rollouts import DecisionBody, RolloutBody, RolloutList, RolloutPath, RolloutWire, rollout_wire
from server.core.errors import ErrorCode
from server.service.rollouts import RolloutService

_UNKNOWN = refusals(ErrorCode.NOT_FOUND)
_BEGINS = refusals(ErrorCode.NOT_FOUND, ErrorCode.ALREADY_EXISTS, ErrorCode.FAILED_PRECONDITION, with_body=True)
_DECIDES = refusals(ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION, with_body=True)


def rollout_routes(rollouts: RolloutService) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["rollouts"])

    @router.post("/v1/adapters/{name}/rollouts", status_code=http.HTTPStatus.CREATED, responses=_BEGINS)
    async def begin_rollout(
        principal: Calling, name: NamePath, body: RolloutBody, key: IdempotencyKey = ""
    ) -> RolloutWire:
        """Try a candidate version on an alias's requests, as a canary or as a shadow."""
        rollout = await rollouts.begin(
            principal,
            name,
            alias=body.alias,
            candidate_version=body.candidate,
            terms=body.terms(),
            idempotency_key=key,
        )
        return rollout_wire(rollout)

    @router.get("/v1/adapters/{name}/rollouts", responses=_UNKNOWN)
    async def list_rollouts(principal: Calling, name: NamePath) -> RolloutList:
        """List an adapter's rollouts, the newest first, with their figures so far."""
        return {"rollouts": [rollout_wire(rollout) for rollout in await rollouts.list(principal, name)]}

    @router.get("/v1/adapters/{name}/rollouts/{rollout_id}", responses=_UNKNOWN)
    async def get_rollout(principal: Calling, name: NamePath, rollout_id: RolloutPath) -> RolloutWire:
        """Show one rollout with its figures so far and every decision."""
        return rollout_wire(await rollouts.get(principal, name, rollout_id))

    @router.post("/v1/adapters/{name}/rollouts/{rollout_id}/promote", responses=_DECIDES)
    async def promote_rollout(
        principal: Calling,
        name: NamePath,
        rollout_id: RolloutPath,
        body: DecisionBody | None = None,
        key: IdempotencyKey = "",
    ) -> RolloutWire:
        """Point the alias at the candidate, whatever the figures say; once promoted, this changes nothing."""
        reason = "" if body is None else body.reason
        return rollout_wire(await rollouts.promote(principal, name, rollout_id, reason=reason, idempotency_key=key))

    @router.post("/v1/adapters/{name}/rollouts/{rollout_id}/rollback", responses=_DECIDES)
    async def roll_back_rollout(
        principal: Calling,
        name: NamePath,
        rollout_id: RolloutPath,
        body: DecisionBody | None = None,
        key: IdempotencyKey = "",
    ) -> RolloutWire:
        """End the rollout with the alias where it is; once rolled back, this changes nothing."""
        reason = "" if body is None else body.reason
        return rollout_wire(await rollouts.roll_back(principal, name, rollout_id, reason=reason, idempotency_key=key))

    return router
