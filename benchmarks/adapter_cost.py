"""What adapters cost our own engine: many LoRAs against none, soft prompts against as many real tokens.

All three batches run in turn on one engine, so nothing differs between them but the requests.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.closed_batch import Measured, measure_in_turn
from benchmarks.models import random_prompts, write_loras, write_soft_prompts
from benchmarks.ours import OurEngine, OurSide, config_for, row_requests

_BASE, _LORAS, _PROMPTS = "base", "different_loras", "soft_prompts"


@dataclass(frozen=True, slots=True)
class AdapterCost:
    """What adapters cost.

    Attributes:
        shape: Name of the base.
        dtype: What it is served in.
        num_rows: Rows, and as many different LoRAs or soft prompts.
        measured: By batch.
    """

    shape: str
    dtype: str
    num_rows: int
    measured: Mapping[str, Measured]

    @property
    def loras_over_base(self) -> float:
        """Throughput with a different LoRA in every row over that of the base."""
        return self.measured[_LORAS].tokens_per_s / self.measured[_BASE].tokens_per_s

    @property
    def prompts_over_tokens(self) -> float:
        """Time with a soft prompt in every row over that with as many real tokens in its place."""
        return self._seconds(_PROMPTS) / self._seconds(_BASE)

    def figures(self) -> dict[str, object]:
        """Return everything measured, as JSON can write it."""
        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "num_rows": self.num_rows,
            "batches": {
                name: {"tokens_per_s": batch.tokens_per_s, "durations_s": batch.durations_s}
                for name, batch in self.measured.items()
            },
            "loras_over_base": self.loras_over_base,
            "prompts_over_tokens": self.prompts_over_tokens,
        }

    def _seconds(self, batch: str) -> float:
        return statistics.median(self.measured[batch].durations_s)


def run_adapter_cost(
    shape: str,
    base: Path,
    folder: Path,
    *,
    dtype: str,
    num_rounds: int,
    num_threads: int,
    num_rows: int = 32,
    num_prompt_tokens: int = 200,
    num_virtual_tokens: int = 20,
    num_new_tokens: int = 48,
    rank: int = 16,
) -> AdapterCost:
    """Measure what adapters cost.

    Args:
        shape: Name of the base.
        base: Its folder.
        folder: Where the adapters are written.
        dtype: What is served in.
        num_rounds: Measurements of each batch.
        num_threads: CPU threads.
        num_rows: Rows of every batch.
        num_prompt_tokens: Encoder positions of every row, virtual tokens included.
        num_virtual_tokens: Of each soft prompt.
        num_new_tokens: Tokens every row generates.
        rank: Of each LoRA.
    """
    loras = write_loras(folder, base, [rank] * num_rows)
    soft_prompts = write_soft_prompts(folder, base, [num_virtual_tokens] * num_rows)
    prompts = random_prompts(base, [num_prompt_tokens] * num_rows)
    shorter = [prompt[num_virtual_tokens:] for prompt in prompts]
    batches = {
        _BASE: row_requests(prompts, num_new_tokens),
        _LORAS: row_requests(prompts, num_new_tokens, loras=loras),
        _PROMPTS: row_requests(shorter, num_new_tokens, soft_prompts=soft_prompts),
    }
    config = config_for(base, list(batches.values()), dtype=dtype, num_threads=num_threads)
    with OurEngine(config) as engine:
        measured = measure_in_turn(
            {name: OurSide(engine, requests).serve for name, requests in batches.items()},
            num_rows=num_rows,
            num_new_tokens=num_new_tokens,
            num_rounds=num_rounds,
        )
    return AdapterCost(shape, dtype, num_rows, measured)
