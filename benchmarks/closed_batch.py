"""A closed batch: rows that are all there at the start, the same for every side, and the measuring of sides in turn.

Knows no engine: a side is a function that serves the whole batch once and returns its tokens.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.engine.base import ResolvedAdapter

Tokens = list[list[int]]
Side = Callable[[], Tokens]

# Idle worker threads of the side before spin for a while; the next side should not pay for it.
_SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class ClosedBatch:
    """The rows of one case.

    Attributes:
        base: Folder of the base.
        prompts: Encoder input of each row, all of one length, so that no side pads.
        loras: LoRA of each row.
        num_new_tokens: Tokens every row generates.
        dtype: What our engine, transformers and PEFT serve in.
        num_threads: CPU threads of every side.
    """

    base: Path
    prompts: tuple[tuple[int, ...], ...]
    loras: tuple[ResolvedAdapter, ...]
    num_new_tokens: int
    dtype: str
    num_threads: int

    @property
    def rows_by_lora(self) -> dict[ResolvedAdapter, list[int]]:
        """Which rows each LoRA has, in order of first appearance."""
        groups: dict[ResolvedAdapter, list[int]] = {}
        for row, lora in enumerate(self.loras):
            groups.setdefault(lora, []).append(row)
        return groups


@dataclass(frozen=True, slots=True)
class Measured:
    """What one side did.

    Attributes:
        tokens: Those of the last round.
        durations_s: Seconds per round, warm-up not included.
    """

    tokens: Tokens
    durations_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all rows over the median round."""
        return sum(len(row) for row in self.tokens) / statistics.median(self.durations_s)


def measure_in_turn(
    sides: Mapping[str, Side], *, num_rows: int, num_new_tokens: int, num_rounds: int
) -> dict[str, Measured]:
    """Measure every side once a round, so that whatever else the machine does meets all alike.

    A round before the first is not counted: it loads adapters and lays out memory.

    Raises:
        RuntimeError: If a side does not generate exactly ``num_new_tokens`` tokens for each of ``num_rows`` rows.
    """
    tokens: dict[str, Tokens] = {}
    durations_s: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(num_rounds + 1):
        for name, serve in sides.items():
            time.sleep(_SETTLE_S)
            start_s = time.perf_counter()
            tokens[name] = serve()
            if turn:
                durations_s[name].append(time.perf_counter() - start_s)
            if [len(row) for row in tokens[name]] != [num_new_tokens] * num_rows:
                raise RuntimeError(f"{name} did not generate {num_new_tokens} tokens for each of {num_rows} rows")
    return {name: Measured(tokens[name], tuple(durations_s[name])) for name in sides}


def agreement(tokens: Tokens, expected: Tokens) -> float:
    """Return the share of tokens that are equal, position by position."""
    pairs = [pair for row, other in zip(tokens, expected, strict=True) for pair in zip(row, other, strict=True)]
    return sum(token == other for token, other in pairs) / len(pairs)
