"""The nouns between scheduler and runner: a row (one request being worked on) and a batch (the rows of one step).

Plain Python: no torch, no asyncio. Used on the step thread only.
"""

from dataclasses import dataclass, field

from server.core.outputs import TokenLogprob
from server.engine.base import EngineRequest, ResolvedAdapter

NOT_FINITE = -1
"""Token id of a row whose logits held NaN or infinity."""


@dataclass(slots=True)
class Row:
    """One accepted request.

    Attributes:
        request: What was asked.
        arrival_s: Monotonic time of submission.
        seed: Seed of this row's random numbers; the request's own or drawn at submission.
        adapters: The adapters it needs, none to two.
        is_plain: Whether its tokens are the likeliest ones, just so, with nothing reported beside them.
        index: Place in the batch and in every per-row buffer; -1 until its encoder pass ends. Changes when the batch
            closes a gap.
        end_token_ids: Tokens that end it and are not part of its output; the scheduler's to say.
        token_ids: Tokens generated so far.
        is_prefetched: Whether its adapters were asked for ahead of its turn.
        queue_s: Seconds from submission until the first step that worked on it; None while waiting.
        ended: Set once its terminal output is made; the row leaves at the next step.
    """

    request: EngineRequest
    arrival_s: float
    seed: int
    adapters: tuple[ResolvedAdapter, ...] = field(init=False)
    is_plain: bool = field(init=False)
    index: int = -1
    end_token_ids: frozenset[int] = frozenset()
    token_ids: list[int] = field(default_factory=list)
    is_prefetched: bool = False
    queue_s: float | None = None
    ended: bool = False

    @property
    def num_encoder_tokens(self) -> int:
        """Encoder positions, those of a soft prompt included."""
        own = self.request.soft_prompt.num_encoder_tokens if self.request.soft_prompt else 0
        return own + len(self.request.prompt_token_ids)

    @property
    def num_prefix_tokens(self) -> int:
        """Decoder positions taken by a prefix."""
        return self.request.soft_prompt.num_decoder_tokens if self.request.soft_prompt else 0

    @property
    def num_decoder_tokens(self) -> int:
        """Decoder positions behind the row: its prefix's, and one for each token it has generated."""
        return self.num_prefix_tokens + len(self.token_ids)

    @property
    def num_tokens_left(self) -> int:
        """Tokens it may still generate, at most."""
        return self.request.sampling.max_new_tokens - len(self.token_ids)

    def __post_init__(self) -> None:
        """Gather what is asked for at every step, or for every row whenever the batch changes."""
        both = (self.request.weight_adapter, self.request.soft_prompt)
        self.adapters = tuple(adapter for adapter in both if adapter is not None)
        params = self.request.sampling
        self.is_plain = not (
            params.temperature > 0
            or params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or params.no_repeat_ngram_size
            or params.min_new_tokens
            or params.logit_bias
            or params.num_logprobs is not None
        )


@dataclass(frozen=True, slots=True)
class EncodeShare:
    """What of the encoder's work on some rows is done at one step.

    The first share of these rows has ``first_stage`` 0, the next one starts where the last one stopped; with the last
    one they join the batch. One set of rows is on its way at a time, and a row encoded over several steps is alone.

    Attributes:
        rows: The rows, encoded together.
        first_stage: First encoder stage to run.
        stop_stage: One past the last encoder stage to run.
    """

    rows: tuple[Row, ...]
    first_stage: int
    stop_stage: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step, and the rows that are on their way into it.

    Attributes:
        rows: Every running row, by index.
        num_new: How many rows, the last ones, joined at this step: their encoder pass ends with it.
        shares: The encoder's work at this step, in this order.
        started: Rows that left the queue at this step.
        moves: (from, to) row indices to copy before anything else, in this order: rows that fill gaps.
        composition: Changes whenever rows join, leave or move, so that per-row tensors can be kept while it stays.
    """

    rows: tuple[Row, ...]
    num_new: int
    shares: tuple[EncodeShare, ...]
    started: tuple[Row, ...]
    moves: tuple[tuple[int, int], ...]
    composition: int

    @property
    def new_rows(self) -> tuple[Row, ...]:
        """The rows that joined at this step."""
        return self.rows[len(self.rows) - self.num_new :]

    @property
    def touched_rows(self) -> tuple[Row, ...]:
        """Every row this step works on; those that joined at it twice."""
        return (*self.rows, *(row for share in self.shares for row in share.rows))


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step computed.

    Attributes:
        token_ids: One token per row of the batch, or :data:`NOT_FINITE`.
        logprobs: Row index → log-probabilities of its token, for the rows that asked.
        unplaced: Rows for whose share of the encoder's work there was no memory; their tokens mean nothing.
    """

    token_ids: tuple[int, ...]
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    unplaced: tuple[Row, ...] = ()
