"""Who runs at the next step: the waiting queue, the running rows and the token budget.

Plain Python: no torch, no asyncio, no clock of its own. Used on the step thread only. It does not know adapters:
``admit`` tells it whether a row's adapters are on the device. Rows start in order of arrival, except that a row whose
adapters are not there yet lets later rows pass.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from server.core.errors import InternalError, MedleyError
from server.core.outputs import FinishReason
from server.engine.base import EngineOutput
from server.engine.native.batch import NOT_FINITE, Batch, Row, StepOutput

RowOutput = tuple[Row, EngineOutput]


class Scheduler:
    """Waiting and running rows.

    Args:
        max_num_seqs: Most rows in a batch.
        max_num_batched_tokens: Most encoder positions that join at one step; a single row may always join.
        eos_token_ids: Tokens that end a row and are not part of its output.
    """

    def __init__(self, *, max_num_seqs: int, max_num_batched_tokens: int, eos_token_ids: Collection[int]) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._eos_token_ids = frozenset(eos_token_ids)
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._composition = 0

    @property
    def num_waiting(self) -> int:
        """Rows not yet started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows in the batch that have not ended."""
        return sum(not row.ended for row in self._running)

    def rows(self) -> tuple[Row, ...]:
        """Every row without a terminal output, running ones first."""
        return tuple(row for row in (*self._running, *self._waiting) if not row.ended)

    def next_waiting(self, count: int) -> tuple[Row, ...]:
        """The rows next in the queue."""
        return tuple(islice(self._waiting, count))

    def add(self, row: Row) -> None:
        """Put a row at the end of the queue."""
        self._waiting.append(row)

    def end(self, rows: Iterable[Row], reason: FinishReason, error: MedleyError | None = None) -> list[RowOutput]:
        """End rows, waiting or running, and return their terminal outputs; rows already ended are passed over."""
        ended: list[RowOutput] = []
        for row in rows:
            if not row.ended:
                row.ended = True
                ended.append((row, EngineOutput(finish_reason=reason, error=error)))
        if any(row.ended for row in self._waiting):
            self._waiting = deque(row for row in self._waiting if not row.ended)
        return ended

    def expire(self, now_s: float) -> list[RowOutput]:
        """End the rows whose deadline has passed."""
        late = [row for row in self.rows() if row.request.deadline_s is not None and row.request.deadline_s <= now_s]
        return self.end(late, FinishReason.DEADLINE) if late else []

    def schedule(self, admit: Callable[[Row], bool], now_s: float) -> Batch:
        """Close the gaps of ended rows, let waiting rows join, and return the batch; it may be empty."""
        moves = self._close_gaps()
        num_new = self._join(admit, now_s)
        if moves or num_new:
            self._composition += 1
        return Batch(tuple(self._running), num_new, tuple(moves), self._composition)

    def update(self, batch: Batch, output: StepOutput) -> list[RowOutput]:
        """Record the step's tokens and return what each row has to say; rows ended meanwhile say nothing."""
        return [
            (row, self._advance(row, token_id, output))
            for row, token_id in zip(batch.rows, output.token_ids, strict=True)
            if not row.ended
        ]

    def _close_gaps(self) -> list[tuple[int, int]]:
        num_before = len(self._running)
        moves: list[tuple[int, int]] = []
        index = 0
        while index < len(self._running):
            if not self._running[index].ended:
                index += 1
                continue
            last = self._running.pop()
            if not last.ended:
                moves.append((last.index, index))
                last.index = index
                self._running[index] = last
        if len(self._running) != num_before:
            self._composition += 1
        return moves

    def _join(self, admit: Callable[[Row], bool], now_s: float) -> int:
        passed: list[Row] = []
        num_new = num_tokens = 0
        while self._waiting and len(self._running) < self._max_num_seqs:
            row = self._waiting[0]
            fits = num_tokens + row.num_encoder_tokens <= self._max_num_batched_tokens
            if num_new and not fits:
                break
            self._waiting.popleft()
            if row.ended:
                continue
            if not admit(row):
                passed.append(row)
                continue
            row.index = len(self._running)
            row.queue_s = now_s - row.arrival_s
            self._running.append(row)
            num_tokens += row.num_encoder_tokens
            num_new += 1
        self._waiting.extendleft(reversed([row for row in passed if not row.ended]))
        return num_new

    def _advance(self, row: Row, token_id: int, output: StepOutput) -> EngineOutput:
        queue_s = None if row.token_ids else row.queue_s
        if token_id == NOT_FINITE:
            row.ended = True
            error = InternalError("the model's output for this request was not finite; its adapter may be damaged")
            return EngineOutput(finish_reason=FinishReason.ERROR, error=error, queue_s=queue_s)
        if token_id in self._eos_token_ids:
            row.ended = True
            return EngineOutput(finish_reason=FinishReason.STOP, queue_s=queue_s)
        row.token_ids.append(token_id)
        row.ended = len(row.token_ids) >= row.request.sampling.max_new_tokens
        logprob = output.logprobs.get(row.index)
        return EngineOutput(
            token_ids=(token_id,),
            logprobs=(logprob,) if logprob else (),
            finish_reason=FinishReason.LENGTH if row.ended else None,
            queue_s=queue_s,
        )
