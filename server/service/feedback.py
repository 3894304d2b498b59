"""What ended, the references for it, with the request or later, and the figures gathered from them."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future

from adapters.errors import StoreError
from server.core.errors import InvalidArgumentError, MedleyError, NotFoundError
from server.core.principal import Principal
from server.core.request import MAX_REFERENCES
from server.evaluation.figures import AdapterEvaluation
from server.evaluation.outcome import OK, Outcome
from server.evaluation.records import Record, new_record
from server.evaluation.reports import ReportQuery
from server.evaluation.room import EvaluationRoom
from server.observability.adapter_labels import BASE
from server.service.prompts import check_unicode

_log = logging.getLogger(__name__)
MAX_REFERENCE_CHARS = 20_000
MAX_WINDOW_S = 90 * 86_400.0
MAX_NUM_WINDOWS = 500
# Figures wait so long for what is being written; a database that is away is not worth more.
_FLUSH_S = 2.0


class FeedbackService:
    """Connects ended requests with evaluation. Event loop's thread only.

    Args:
        room: Keeps, scores and counts.
    """

    def __init__(self, room: EvaluationRoom) -> None:
        """Keep the room."""
        self._room = room

    def ended(
        self, outcome: Outcome, source: str, references: Sequence[str], metrics: tuple[str, ...] = ()
    ) -> "Future[Mapping[str, float]] | None":
        """Take an ended request, without waiting; return its scores to come where it has references.

        Args:
            outcome: The request; with its text, if the answer is good.
            source: What the answer was made of.
            references: Texts that came with the request.
            metrics: Names of what it is scored by; empty for the scorer's own choice.
        """
        record = new_record(outcome, metrics)
        if outcome.code == OK:
            self._room.window.add(record)
        if references or self._room.sampler.takes(outcome):
            self._room.recorder.record(record, source, references)
        if not references:
            return None
        try:
            return self._room.evaluator.offer(record, references)
        except MedleyError as error:
            _log.warning("not scored: %s", error.message, extra={"request_id": outcome.request_id})
            return None

    async def submit(self, principal: Principal, request_id: str, references: Sequence[str]) -> Mapping[str, float]:
        """Score a finished request of the caller and return its scores by metric name; they are on disk.

        Raises:
            InvalidArgumentError: If there are no references, too many, or one is empty or too long.
            NotFoundError: If the request is unknown, somebody else's, unfinished, or too long ago.
            ResourceExhaustedError: If too many texts wait to be scored.
            UnavailableError: If the scores cannot be written.
            StoreError: If the database cannot be read.
        """
        if not references:
            raise InvalidArgumentError("at least one reference is needed", param="references")
        check_references(references)
        record = (await self.find(principal, [request_id])).get(request_id)
        if record is None:
            raise NotFoundError(
                "no finished request with this id; it is unknown, still running, failed, or too long ago",
                param="request_id",
            )
        return await self.score(record, references)

    async def find(self, principal: Principal, request_ids: Iterable[str]) -> dict[str, Record]:
        """Return the caller's finished requests whose answers are known here, by id.

        Raises:
            StoreError: If the database cannot be read.
        """
        ids = list(request_ids)
        here = {each: record for each in ids if (record := self._room.window.get(principal.who, each)) is not None}
        elsewhere = [each for each in ids if each not in here]
        if not elsewhere or not self._room.store.store_texts:
            return here
        return here | await asyncio.to_thread(self._room.store.find, principal.who, elsewhere)

    async def score(self, record: Record, references: Sequence[str]) -> Mapping[str, float]:
        """Score a request and return its scores when they are on disk.

        Raises:
            ResourceExhaustedError: If too many texts wait to be scored or written.
            UnavailableError: If the scores cannot be written.
        """
        shadow = self._room.window.shadow_of(record)
        if shadow is not None:
            self._room.evaluator.offer_quietly(shadow, references)
        if self._room.store.store_texts:
            # From here on a crash does not lose them: they are scored when a server looks for what waits.
            await asyncio.wrap_future(self._room.recorder.save(record, references))
        return await asyncio.wrap_future(self._room.evaluator.offer(record, references))

    async def evaluations(
        self, principal: Principal, query: ReportQuery | None = None
    ) -> tuple[AdapterEvaluation, ...]:
        """Return the figures gathered so far, one entry per adapter combination of which the caller sees all.

        Raises:
            InvalidArgumentError: If the windows asked for are out of range.
            StoreError: If the database cannot be read.
        """
        query = query or ReportQuery()
        if not 1.0 <= query.window_s <= MAX_WINDOW_S:
            raise InvalidArgumentError(f"window_s must be from 1 to {MAX_WINDOW_S:.0f}", param="window_s")
        if not 1 <= query.num_windows <= MAX_NUM_WINDOWS:
            raise InvalidArgumentError(f"num_windows must be from 1 to {MAX_NUM_WINDOWS}", param="num_windows")
        await self._written()
        found = await self._room.reports.evaluations(query)
        return tuple(entry for entry in found if _is_seen(principal, entry.adapters))

    async def _written(self) -> None:
        """Wait until what ended here is in the store, so that callers find what they were told of."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._room.recorder.flush()), _FLUSH_S)
        except (MedleyError, StoreError, TimeoutError):
            _log.warning("figures lack requests that could not be written yet")


def _is_seen(principal: Principal, label: str) -> bool:
    return label == BASE or all(principal.sees(part.partition(":")[0]) for part in label.split("+"))


def check_references(references: Sequence[str]) -> None:
    """Refuse references that cannot be scored; none at all are fine.

    Raises:
        InvalidArgumentError: If there are too many, or one is empty, too long or no valid Unicode.
    """
    if len(references) > MAX_REFERENCES:
        raise InvalidArgumentError(f"at most {MAX_REFERENCES} references", param="references")
    if not all(reference.strip() for reference in references):
        raise InvalidArgumentError("a reference is empty", param="references")
    if any(len(reference) > MAX_REFERENCE_CHARS for reference in references):
        raise InvalidArgumentError(f"a reference has over {MAX_REFERENCE_CHARS} characters", param="references")
    for reference in references:
        check_unicode(reference, "references")
