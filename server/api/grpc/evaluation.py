"""``medley.v1.EvaluationService``: references that come later, and the scores gathered."""

from dataclasses import asdict

from medley.v1 import evaluation_pb2 as pb
from medley.v1 import evaluation_pb2_grpc
from server.api.grpc.access import principal_of
from server.api.grpc.errors import Context, answering
from server.core.request import check_request_id
from server.evaluation.figures import AdapterEvaluation
from server.evaluation.reports import ReportQuery
from server.service.feedback import FeedbackService


class EvaluationServicer(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Translates calls.

    Args:
        feedback: The service.
    """

    def __init__(self, feedback: FeedbackService) -> None:
        """Keep the service."""
        self._feedback = feedback

    async def SubmitReferences(
        self, request: pb.SubmitReferencesRequest, context: Context
    ) -> pb.SubmitReferencesResponse:
        """See the ``.proto`` file."""
        async with answering(context, request.request_id):
            scores = await self._feedback.submit(
                principal_of(context), check_request_id(request.request_id), request.references
            )
            return pb.SubmitReferencesResponse(request_id=request.request_id, scores=scores)

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: Context) -> pb.GetEvaluationResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            found = await self._feedback.evaluations(principal_of(context), _query(request))
            return pb.GetEvaluationResponse(evaluations=map(_evaluation, found))


def _query(request: pb.GetEvaluationRequest) -> ReportQuery:
    default = ReportQuery()
    return ReportQuery(
        request.adapter,
        request.window_s if request.HasField("window_s") else default.window_s,
        request.num_windows if request.HasField("num_windows") else default.num_windows,
    )


def _evaluation(entry: AdapterEvaluation) -> pb.AdapterEvaluation:
    return pb.AdapterEvaluation(
        adapters=entry.adapters,
        num_finished=entry.totals.num_finished,
        num_errors=entry.totals.num_errors,
        num_scored=entry.totals.num_scored,
        means=entry.means,
        metrics={name: pb.MetricFigures(**asdict(figures)) for name, figures in entry.metrics.items()},
        windows=[pb.EvaluationWindow(**asdict(window)) for window in entry.windows],
        drift={name: pb.Drift(**asdict(drift)) for name, drift in entry.drift.items()},
    )
