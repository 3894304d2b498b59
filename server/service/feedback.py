"""References for what was served, with the request or later, and the figures gathered from them."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from server.core.errors import InvalidArgumentError, MedleyError, NotFoundError
from server.core.principal import Principal
from server.core.request import MAX_REFERENCES
from server.evaluation.evaluator import Evaluator
from server.evaluation.tally import BASE, OTHER, AdapterEvaluation
from server.evaluation.window import FinishedRequest, FinishedWindow

_log = logging.getLogger(__name__)
MAX_REFERENCE_CHARS = 20_000


class FeedbackService:
    """Connects finished requests with the evaluator. Event loop's thread only.

    Args:
        evaluator: Scores.
        window: Remembers finished requests for references that come later.
    """

    def __init__(self, evaluator: Evaluator, window: FinishedWindow) -> None:
        """Keep the parts."""
        self._evaluator = evaluator
        self._window = window

    def finished(self, finished: FinishedRequest, references: Sequence[str]) -> "Future[Mapping[str, float]] | None":
        """Take a good answer; return its scores to come, or None without references or when the queue is full."""
        self._window.add(finished)
        if not references:
            return None
        try:
            return self._evaluator.offer(finished, references)
        except MedleyError as error:
            _log.warning("not scored: %s", error.message, extra={"request_id": finished.request_id})
            return None

    async def submit(self, principal: Principal, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request of the caller and return its scores in percent by metric name.

        Raises:
            InvalidArgumentError: If there are no references, too many, or one is empty or too long.
            NotFoundError: If the request is unknown, somebody else's, unfinished, or too long ago.
            ResourceExhaustedError: If too many texts wait to be scored.
        """
        if not references:
            raise InvalidArgumentError("at least one reference is needed", param="references")
        check_references(references)
        finished = self._window.get(principal.who, request_id)
        if finished is None:
            raise NotFoundError(
                "no finished request with this id; it is unknown, still running, failed, or too long ago",
                param="request_id",
            )
        return await asyncio.wrap_future(self._evaluator.offer(finished, references))

    def evaluations(self, principal: Principal) -> tuple[AdapterEvaluation, ...]:
        """Return the figures gathered so far, one entry per adapter combination of which the caller sees all."""
        return tuple(entry for entry in self._evaluator.evaluations() if _is_seen(principal, entry.adapters))


def _is_seen(principal: Principal, label: str) -> bool:
    if label == OTHER:
        return principal.sees_all
    return label == BASE or all(principal.sees(part.partition(":")[0]) for part in label.split("+"))


def check_references(references: Sequence[str]) -> None:
    """Refuse references that cannot be scored; none at all are fine.

    Raises:
        InvalidArgumentError: If there are too many, or one is empty or too long.
    """
    if len(references) > MAX_REFERENCES:
        raise InvalidArgumentError(f"at most {MAX_REFERENCES} references", param="references")
    if not all(reference.strip() for reference in references):
        raise InvalidArgumentError("a reference is empty", param="references")
    if any(len(reference) > MAX_REFERENCE_CHARS for reference in references):
        raise InvalidArgumentError(f"a reference has over {MAX_REFERENCE_CHARS} characters", param="references")
