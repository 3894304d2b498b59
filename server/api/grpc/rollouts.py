"""``medley.v1.RolloutService``: begin, list, show, and decide by hand."""

from dataclasses import asdict

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from adapters.registry import DEFAULT_ALIAS
from medley.v1 import rollout_pb2 as pb
from medley.v1 import rollout_pb2_grpc
from server.api.grpc.access import principal_of
from server.api.grpc.errors import Context, answering
from server.core.errors import InvalidArgumentError
from server.evaluation.rollouts.records import Decision, Mode, Rollout, Terms
from server.service.rollouts import RolloutService

_DEFAULTS = Terms()
_MODES = {
    pb.ROLLOUT_MODE_UNSPECIFIED: _DEFAULTS.mode,
    pb.ROLLOUT_MODE_CANARY: Mode.CANARY,
    pb.ROLLOUT_MODE_SHADOW: Mode.SHADOW,
}


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """Translates calls.

    Args:
        rollouts: The service.
    """

    def __init__(self, rollouts: RolloutService) -> None:
        """Keep the service."""
        self._rollouts = rollouts

    async def StartRollout(self, request: pb.StartRolloutRequest, context: Context) -> pb.StartRolloutResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            if request.candidate < 1:
                raise InvalidArgumentError("candidate is the number of the version to try", param="candidate")
            rollout = await self._rollouts.begin(
                principal_of(context),
                request.name,
                alias=request.alias or DEFAULT_ALIAS,
                candidate_version=request.candidate,
                terms=_terms(request.terms),
                idempotency_key=request.idempotency_key,
            )
            return pb.StartRolloutResponse(rollout=_rollout(rollout))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Context) -> pb.ListRolloutsResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            rollouts = await self._rollouts.list(principal_of(context), request.name)
            return pb.ListRolloutsResponse(rollouts=map(_rollout, rollouts))

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.GetRolloutResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            rollout = await self._rollouts.get(principal_of(context), request.name, request.rollout_id)
            return pb.GetRolloutResponse(rollout=_rollout(rollout))

    async def PromoteRollout(self, request: pb.PromoteRolloutRequest, context: Context) -> pb.PromoteRolloutResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            rollout = await self._rollouts.promote(
                principal_of(context),
                request.name,
                request.rollout_id,
                reason=request.reason,
                idempotency_key=request.idempotency_key,
            )
            return pb.PromoteRolloutResponse(rollout=_rollout(rollout))

    async def RollBackRollout(self, request: pb.RollBackRolloutRequest, context: Context) -> pb.RollBackRolloutResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            rollout = await self._rollouts.roll_back(
                principal_of(context),
                request.name,
                request.rollout_id,
                reason=request.reason,
                idempotency_key=request.idempotency_key,
            )
            return pb.RollBackRolloutResponse(rollout=_rollout(rollout))


def _terms(message: pb.RolloutTerms) -> Terms:
    mode = _MODES.get(message.mode)
    if mode is None:
        raise InvalidArgumentError("mode is canary or shadow", param="mode")
    given = {field.name: value for field, value in message.ListFields() if field.has_presence}
    return Terms(mode=mode, **given)


def _rollout(rollout: Rollout) -> pb.Rollout:
    plan, terms = rollout.plan, asdict(rollout.plan.terms)
    return pb.Rollout(
        id=rollout.rollout_id,
        adapter=plan.adapter,
        alias=plan.alias,
        stable_version=plan.stable_version,
        candidate_version=plan.candidate_version,
        terms=pb.RolloutTerms(**terms | {"mode": f"ROLLOUT_MODE_{plan.terms.mode.upper()}"}),
        state=pb.RolloutState.Value(f"ROLLOUT_STATE_{rollout.state.upper()}"),
        verdict=pb.RolloutVerdict.Value(f"ROLLOUT_VERDICT_{rollout.verdict}"),
        stable=pb.RolloutArm(**asdict(rollout.arms.stable)),
        candidate=pb.RolloutArm(**asdict(rollout.arms.candidate)),
        decisions=map(_decision, rollout.decisions),
        created_s=rollout.created_s,
        ended_s=rollout.ended_s,
    )


def _decision(decision: Decision) -> pb.RolloutDecision:
    return pb.RolloutDecision(
        at_s=decision.at_s,
        by=decision.by,
        action=decision.action,
        reason=decision.reason,
        data=ParseDict(dict(decision.data), Struct()),
    )
