"""References in bulk: for requests that ended, and in sets for those still to come. Event loop's thread only."""

import asyncio
from dataclasses import dataclass

from adapters.errors import StoreError
from adapters.manifest import check_name
from server.core.errors import InvalidArgumentError, MedleyError, ResourceExhaustedError
from server.core.principal import Principal
from server.evaluation.records import Record
from server.evaluation.reference_sets import ReferenceSet, ReferenceSets
from server.service.feedback import FeedbackService
from server.service.reference_files import LineError, ReferenceRow, RowFormat, input_rows, request_rows

# Fewer than the scorer's queue holds, so that a batch leaves room for what comes with requests.
_NUM_AT_ONCE = 16
_NUM_TRIES = 50
_TRY_AGAIN_S = 0.2
_MAX_NUM_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a batch.

    Attributes:
        num_accepted: Rows scored; their scores are on disk.
        num_unknown: Rows of requests that are not known here.
        num_refused: Rows that are not well formed, or that there was no room for.
        errors: Why, for the first hundred of the refused.
    """

    num_accepted: int
    num_unknown: int
    num_refused: int
    errors: tuple[LineError, ...]


class ReferenceImport:
    """Takes references in bulk.

    Args:
        feedback: Finds and scores requests.
        sets: Keeps reference sets.
    """

    def __init__(self, feedback: FeedbackService, sets: ReferenceSets) -> None:
        """Keep the parts."""
        self._feedback = feedback
        self._sets = sets

    async def submit_batch(self, principal: Principal, data: bytes, form: RowFormat) -> Imported:
        """Score finished requests of the caller, a few at a time.

        Raises:
            InvalidArgumentError: If there are no rows or too many, or a CSV does not have the right columns.
            StoreError: If the database cannot be read.
        """
        read = await asyncio.to_thread(request_rows, data, form)
        records = await self._feedback.find(principal, [row.subject for row in read.rows])
        known = [(row, records[row.subject]) for row in read.rows if row.subject in records]
        room = asyncio.Semaphore(_NUM_AT_ONCE)

        async def score(row: ReferenceRow, record: Record) -> LineError | None:
            async with room:
                return await self._score(row, record)

        outcomes = await asyncio.gather(*(score(row, record) for row, record in known))
        unscored = [error for error in outcomes if error is not None]
        errors = sorted((*read.errors, *unscored), key=lambda error: error.line)
        return Imported(
            num_accepted=len(known) - len(unscored),
            num_unknown=len(read.rows) - len(known),
            num_refused=len(errors),
            errors=tuple(errors[:_MAX_NUM_ERRORS]),
        )

    async def put_set(self, principal: Principal, name: str, data: bytes) -> ReferenceSet:
        """Put a reference set there, in place of an earlier one of its name.

        Raises:
            InvalidArgumentError: If a row is not well formed, there are none or too many; the message has the line.
            InvalidAdapterReferenceError: If the name is not well formed, as an adapter's would not be.
            StoreError: If the database cannot be written.
        """
        check_name(name)
        read = await asyncio.to_thread(input_rows, data)
        if read.errors:
            # Nothing is half there: whoever puts a set means all of it.
            first, num_more = read.errors[0], len(read.errors) - 1
            more = f" (and {num_more} more)" if num_more else ""
            raise InvalidArgumentError(f"line {first.line}: {first.message}{more}", param="body")
        references = {row.subject: row.references for row in read.rows}
        return await asyncio.to_thread(self._sets.put, principal, name, references)

    async def sets(self, principal: Principal) -> tuple[ReferenceSet, ...]:
        """Return the caller's sets, by name.

        Raises:
            StoreError: If the database cannot be read.
        """
        return await asyncio.to_thread(self._sets.owned, principal)

    async def remove_set(self, principal: Principal, name: str) -> None:
        """Remove a set; scores made by it stay.

        Raises:
            NotFoundError: If the caller has none of this name.
            StoreError: If the database cannot be written.
        """
        await asyncio.to_thread(self._sets.remove, principal, name)

    async def _score(self, row: ReferenceRow, record: Record) -> LineError | None:
        for _ in range(_NUM_TRIES):
            try:
                await self._feedback.score(record, row.references)
            except ResourceExhaustedError:
                await asyncio.sleep(_TRY_AGAIN_S)
            except (MedleyError, StoreError) as error:
                return LineError(row.line, error.message)
            else:
                return None
        return LineError(row.line, "too many texts wait to be scored; try again later")
