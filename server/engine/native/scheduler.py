"""Who runs at the next step: the waiting queue, the rows in the encoder, the running rows.

Plain Python: no torch, no asyncio, no clock of its own. Used on the step thread only. It does not know adapters:
``admit`` tells it whether a row's adapters are on the device. Rows start in the order of
:class:`~server.engine.native.fair_queue.FairQueue`, except that a row whose adapters are not there yet lets later rows
pass.

A row goes through the encoder before it joins the batch. While rows decode, the encoder's work between two of their
tokens is bounded, so that a long document or a burst of requests does not stall them: rows that fit into the bound are
encoded whole, the first one that does not is encoded stage by stage (a stage is an encoder layer, or the last
projection) over as many steps as it takes. The bound grows up to :data:`MAX_GROWTH` times where more rows wait for a
free seat than decode: then stalling the few costs less than decoding nearly empty batches. Where nothing decodes,
nobody stalls and ``max_num_batched_tokens`` is the bound.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from server.core.errors import InternalError, MedleyError, ResourceExhaustedError
from server.core.outputs import FinishReason
from server.engine.base import EngineOutput
from server.engine.native.batch import NOT_FINITE, Batch, EncodeShare, Row, StepOutput
from server.engine.native.fair_queue import FairQueue

RowOutput = tuple[Row, EngineOutput]

MAX_GROWTH = 4
"""How many times larger the bound on the encoder's work becomes while few rows decode and many wait."""


@dataclass(slots=True)
class _Pack:
    """Rows that go through the encoder together: one that takes several steps, or any that are through in one."""

    rows: tuple[Row, ...]
    next_stage: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(row.num_encoder_tokens for row in self.rows)


class Scheduler:
    """Waiting and running rows.

    Args:
        max_num_seqs: Most rows in a batch.
        max_num_batched_tokens: Most encoder positions one step takes in; a single row may always join.
        max_prefill_tokens_per_step: Most encoder work of a step while rows decode: that of so many positions through
            all stages. One stage of the row in the encoder is always run.
        num_stages: Stages of the encoder.
        eos_token_ids: Tokens that end a row that does not ignore them.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_prefill_tokens_per_step: int,
        num_stages: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_prefill_tokens_per_step = max_prefill_tokens_per_step
        self._num_stages = num_stages
        self._eos_token_ids = frozenset(eos_token_ids)
        self._waiting = FairQueue()
        self._encoding: deque[_Pack] = deque()
        self._running: list[Row] = []
        self._composition = 0

    @property
    def num_waiting(self) -> int:
        """Rows not yet started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows in the batch or in the encoder that have not ended."""
        return sum(not row.ended for row in (*self._running, *self._encoding_rows()))

    def rows(self) -> tuple[Row, ...]:
        """Every row without a terminal output, running ones first."""
        return tuple(row for row in (*self._running, *self._encoding_rows(), *self._waiting) if not row.ended)

    def next_waiting(self, count: int) -> tuple[Row, ...]:
        """The rows next in the queue, about in their order."""
        return self._waiting.first(count)

    def newest_waiting(self, tenant: str) -> Row | None:
        """The row of a tenant that came last, of those that wait."""
        return self._waiting.newest(tenant)

    def add(self, row: Row) -> None:
        """Put a row into the queue."""
        sampling = row.request.sampling
        own = frozenset() if sampling.ignore_eos else self._eos_token_ids
        row.end_token_ids = own.union(sampling.stop_token_ids) if sampling.stop_token_ids else own
        self._waiting.add(row)

    def end(self, rows: Iterable[Row], reason: FinishReason, error: MedleyError | None = None) -> list[RowOutput]:
        """End rows, waiting or running, and return their terminal outputs; rows already ended are passed over."""
        ended: list[RowOutput] = []
        for row in rows:
            if not row.ended:
                row.ended = True
                ended.append((row, EngineOutput(finish_reason=reason, error=error)))
        self._waiting.remove_ended()
        return ended

    def expire(self, now_s: float) -> list[RowOutput]:
        """End the rows whose deadline has passed."""
        late = [row for row in self.rows() if row.request.deadline_s is not None and row.request.deadline_s <= now_s]
        return self.end(late, FinishReason.DEADLINE) if late else []

    def schedule(self, admit: Callable[[Row], bool], now_s: float) -> Batch:
        """Close the gaps of ended rows, share out the encoder's work, and return the batch; it may be empty."""
        moves = self._close_gaps()
        budget = self._num_stages * self._max_encoder_tokens()
        self._drop_ended_packs()
        started = self._start(admit, now_s, budget)
        num_before = len(self._running)
        shares = self._share_out(budget)
        num_new = len(self._running) - num_before
        if moves or num_new:
            self._composition += 1
        return Batch(tuple(self._running), num_new, shares, started, tuple(moves), self._composition)

    def update(self, batch: Batch, output: StepOutput) -> list[RowOutput]:
        """Record the step's tokens and return what each row has to say; rows ended meanwhile say nothing."""
        refused = self._refuse(output.unplaced) if output.unplaced else []
        return refused + [
            (row, self._advance(row, token_id, output))
            for row, token_id in zip(batch.rows, output.token_ids, strict=True)
            if not row.ended
        ]

    def _refuse(self, rows: Iterable[Row]) -> list[RowOutput]:
        words = "there is no memory for this request now; send it again later, or a shorter one"
        return self.end(rows, FinishReason.ERROR, ResourceExhaustedError(words))

    def _close_gaps(self) -> list[tuple[int, int]]:
        num_before = len(self._running)
        moves: list[tuple[int, int]] = []
        index = 0
        while index < len(self._running):
            if not self._running[index].ended:
                index += 1
                continue
            last = self._running.pop()
            self._waiting.leave(last if last.ended else self._running[index])
            if not last.ended:
                moves.append((last.index, index))
                last.index = index
                self._running[index] = last
        if len(self._running) != num_before:
            self._composition += 1
        return moves

    def _drop_ended_packs(self) -> None:
        for pack in self._encoding:
            if pack.rows[0].ended:
                for row in pack.rows:
                    self._waiting.leave(row)
        self._encoding = deque(pack for pack in self._encoding if not pack.rows[0].ended)

    def _encoding_rows(self) -> tuple[Row, ...]:
        return tuple(row for pack in self._encoding for row in pack.rows)

    def _max_encoder_tokens(self) -> int:
        """Return how many positions may go through the whole encoder at this step."""
        if not self._running:
            return self._max_num_batched_tokens
        num_wanting = min(len(self._encoding_rows()) + len(self._waiting), self._max_num_seqs - len(self._running))
        growth = min(max(1, num_wanting // len(self._running)), MAX_GROWTH)
        return min(growth * self._max_prefill_tokens_per_step, self._max_num_batched_tokens)

    def _start(self, admit: Callable[[Row], bool], now_s: float, budget: int) -> tuple[Row, ...]:
        """Take rows off the queue for what the budget leaves: a pack of all that fit whole, then one that does not."""
        budget -= sum((self._num_stages - pack.next_stage) * pack.num_tokens for pack in self._encoding)
        num_seats = self._max_num_seqs - len(self._running) - len(self._encoding_rows())
        rows: list[Row] = []
        passed: list[Row] = []
        while len(rows) < num_seats and budget > 0 and (row := self._waiting.pop()) is not None:
            if not admit(row):
                passed.append(row)
                continue
            self._waiting.start(row)
            row.queue_s = now_s - row.arrival_s
            rows.append(row)
            budget -= self._num_stages * row.num_encoder_tokens
        self._waiting.put_back(passed)
        whole = rows if budget >= 0 else rows[:-1]
        self._encoding.extend(_Pack(tuple(part)) for part in (whole, rows[len(whole) :]) if part)
        return tuple(rows)

    def _share_out(self, budget: int) -> tuple[EncodeShare, ...]:
        """Advance the rows in the encoder as far as the budget goes; those that are through join the batch."""
        shares: list[EncodeShare] = []
        while self._encoding:
            pack = self._encoding[0]
            num_left = self._num_stages - pack.next_stage
            num_stages = min(num_left, budget // pack.num_tokens)
            if not shares:
                num_stages = max(num_stages, 1 if self._running else num_left)
            if not num_stages:
                break
            stop = pack.next_stage + num_stages
            shares.append(EncodeShare(pack.rows, pack.next_stage, stop))
            pack.next_stage = stop
            budget -= num_stages * pack.num_tokens
            if stop < self._num_stages:
                break
            self._encoding.popleft()
            self._join(pack.rows)
        return tuple(shares)

    def _join(self, rows: Iterable[Row]) -> None:
        for row in rows:
            row.index = len(self._running)
            self._running.append(row)

    def _advance(self, row: Row, token_id: int, output: StepOutput) -> EngineOutput:
        queue_s = None if row.token_ids else row.queue_s
        if token_id == NOT_FINITE:
            row.ended = True
            error = InternalError("the model's output for this request was not finite; its adapter may be damaged")
            return EngineOutput(finish_reason=FinishReason.ERROR, error=error, queue_s=queue_s)
        if token_id in row.end_token_ids:
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
