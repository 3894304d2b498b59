"""One case of the engine benchmark: one closed batch on our engine and on every peer, in turn.

Knows no command line and writes no file.
"""

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.closed_batch import ClosedBatch, Measured, Side, agreement, measure_in_turn
from benchmarks.ctranslate2_peer import BASE_FOLDER, Setting, best_side
from benchmarks.hugging_face import HuggingFace
from benchmarks.ours import OurEngine, OurSide, config_for, row_requests
from benchmarks.roofline import StepBytes, read_bandwidth, step_bytes
from server.engine.native.kernels import cpu

OURS = "ours"
OURS_BASE = "ours_base"
OURS_INT8 = "ours_int8"
PEFT_MIXED = "peft_mixed"
PEFT_SWITCHING = "peft_switching"
TRANSFORMERS_BASE = "transformers_base"
# Which side must give the same tokens in float32 as which.
_SAME_TOKENS = {
    PEFT_MIXED: OURS,
    PEFT_SWITCHING: OURS,
    "ct2_float32_merged": OURS,
    TRANSFORMERS_BASE: OURS_BASE,
    "ct2_float32_base": OURS_BASE,
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """Our decode step beside the least it can take.

    Attributes:
        step_bytes: What a step reads.
        bytes_per_s: Bandwidth measured beside the case, the best of several readings.
        steps_s: Our median decode step of each round.
    """

    step_bytes: StepBytes
    bytes_per_s: float
    steps_s: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Our decode step."""
        return statistics.median(self.steps_s)

    @property
    def least_s(self) -> float:
        """What reading the step's bytes takes."""
        return self.step_bytes.total_bytes / self.bytes_per_s

    @property
    def step_over_roofline(self) -> float:
        """The one over the other."""
        return self.step_s / self.least_s

    def figures(self) -> dict[str, object]:
        """Return everything measured, as JSON can write it."""
        derived = {"step_s": self.step_s, "least_s": self.least_s, "step_over_roofline": self.step_over_roofline}
        return {**asdict(self), **derived}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What one case came to.

    Attributes:
        shape: Name of the base.
        batch: What was served.
        measured: By side.
        settings: Of the sides that have a choice.
        roofline: Of our engine with adapters; None where its rows never all decoded at once.
    """

    shape: str
    batch: ClosedBatch
    measured: Mapping[str, Measured]
    settings: Mapping[str, Setting]
    roofline: Roofline | None

    @property
    def ratios(self) -> dict[str, float]:
        """Our throughput with adapters over that of each other side."""
        return {name: self.ratio(OURS, name) for name in self.measured if name != OURS}

    def ratio(self, side: str, other: str) -> float:
        """Return the throughput of one side over that of another."""
        return self.measured[side].tokens_per_s / self.measured[other].tokens_per_s

    @property
    def agreement(self) -> dict[str, float]:
        """In float32, the share of tokens each peer has in common with us under the same adapters; else empty."""
        if self.batch.dtype != "float32":
            return {}
        return {
            peer: agreement(self.measured[peer].tokens, self.measured[ours].tokens)
            for peer, ours in _SAME_TOKENS.items()
            if peer in self.measured
        }

    def figures(self) -> dict[str, object]:
        """Return everything measured, as JSON can write it."""
        return {
            "shape": self.shape,
            "dtype": self.batch.dtype,
            "num_rows": len(self.batch.prompts),
            "num_loras": len(self.batch.rows_by_lora),
            "rank": self.batch.loras[0].rank,
            "num_prompt_tokens": len(self.batch.prompts[0]),
            "num_new_tokens": self.batch.num_new_tokens,
            "sides": {
                name: {"tokens_per_s": side.tokens_per_s, "durations_s": side.durations_s}
                for name, side in self.measured.items()
            },
            "ratios": {f"{OURS}_over_{name}": ratio for name, ratio in self.ratios.items()},
            "agreement": self.agreement,
            "ct2_settings": {name: asdict(setting) for name, setting in self.settings.items()},
            "roofline": self.roofline.figures() if self.roofline else None,
        }


def run_case(shape: str, batch: ClosedBatch, *, converted: Path, num_rounds: int, has_all_peers: bool) -> CaseResult:
    """Measure one case.

    Args:
        shape: Name of the base.
        batch: What is served.
        converted: CTranslate2's models of the base and of its merges.
        num_rounds: Measurements of each side.
        has_all_peers: Whether those are measured too that serve adapter by adapter: PEFT switching, CTranslate2 merged.

    Raises:
        RuntimeError: If a side stops early, or if in float32 PEFT's mixed batch gives other tokens than we do.
    """
    requests = row_requests(batch.prompts, batch.num_new_tokens, loras=batch.loras)
    base_requests = row_requests(batch.prompts, batch.num_new_tokens)
    peers, settings = _peers(batch, converted, has_all_peers=has_all_peers)
    config = config_for(batch.base, [requests], dtype=batch.dtype, num_threads=batch.num_threads)
    with ExitStack() as engines:
        engine = engines.enter_context(OurEngine(config))
        ours = OurSide(engine, requests)
        sides = {OURS: ours.serve, OURS_BASE: OurSide(engine, base_requests).serve}
        if _has_int8(batch):
            int8_engine = engines.enter_context(OurEngine(replace(config, quantization="int8")))
            sides[OURS_INT8] = OurSide(int8_engine, requests).serve
        before = read_bandwidth()
        measured = measure_in_turn(
            {**sides, **peers},
            num_rows=len(batch.prompts),
            num_new_tokens=batch.num_new_tokens,
            num_rounds=num_rounds,
        )
    steps_s = tuple(step_s for step_s in ours.steps_s[1:] if step_s is not None)
    bytes_per_s = max(before, read_bandwidth())
    roofline = Roofline(step_bytes(batch), bytes_per_s, steps_s) if steps_s else None
    result = CaseResult(shape, batch, measured, settings, roofline)
    if result.agreement.get(PEFT_MIXED, 1.0) < 1.0:
        raise RuntimeError(f"{shape}: the engine and PEFT disagree on a token in float32")
    return result


def _has_int8(batch: ClosedBatch) -> bool:
    """Whether the case has an int8 base of ours: the float32 case compares tokens, and not every CPU has the kernel."""
    return batch.dtype == "bfloat16" and cpu.can_multiply_int8(torch.empty(16, 16))


def _peers(batch: ClosedBatch, converted: Path, *, has_all_peers: bool) -> tuple[dict[str, Side], dict[str, Setting]]:
    """Return every peer, ready to serve, and the settings CTranslate2 is fastest with."""
    hugging_face = HuggingFace(batch)
    peers: dict[str, Side] = {PEFT_MIXED: hugging_face.mixed, TRANSFORMERS_BASE: hugging_face.base_only}
    groups = {"base": {converted / BASE_FOLDER: list(range(len(batch.prompts)))}}
    if has_all_peers:
        peers[PEFT_SWITCHING] = hugging_face.switching
        groups["merged"] = {converted / lora.digest: rows for lora, rows in batch.rows_by_lora.items()}
    settings = {}
    for compute_type in ("float32", "int8"):
        for what, folders in groups.items():
            side, setting = best_side(folders, batch, compute_type=compute_type)
            peers[f"ct2_{compute_type}_{what}"] = side.serve
            settings[f"ct2_{compute_type}_{what}"] = setting
    return peers, settings
