"""``medley.v1.EvaluationService``: references that come later, and the scores gathered."""

from medley.v1 import evaluation_pb2 as pb
from medley.v1 import evaluation_pb2_grpc
from server.api.grpc.access import principal_of
from server.api.grpc.errors import Context, answering
from server.core.request import check_request_id
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

    async def GetEvaluation(self, _request: pb.GetEvaluationRequest, context: Context) -> pb.GetEvaluationResponse:
        """See the ``.proto`` file."""
        async with answering(context):
            evaluations = [
                pb.AdapterEvaluation(adapters=entry.adapters, num_scored=entry.num_scored, means=entry.means)
                for entry in self._feedback.evaluations(principal_of(context))
            ]
            return pb.GetEvaluationResponse(evaluations=evaluations)
