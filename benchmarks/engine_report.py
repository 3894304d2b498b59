"""The engine benchmark's figures as Markdown tables and as a plot. Knows how to show, not how to measure."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.adapter_cost import AdapterCost
from benchmarks.engine_case import OURS, CaseResult

_TITLES = {
    "ours": "Medley, LoRAs mixed",
    "ours_base": "Medley, base only",
    "ours_int8": "Medley int8, LoRAs mixed",
    "peft_mixed": "PEFT, mixed batch",
    "peft_switching": "PEFT, switching",
    "transformers_base": "transformers, base only",
    "ct2_float32_base": "CTranslate2 float32, base only",
    "ct2_int8_base": "CTranslate2 int8, base only",
    "ct2_float32_merged": "CTranslate2 float32, merged",
    "ct2_int8_merged": "CTranslate2 int8, merged",
}


def markdown(cases: Sequence[CaseResult], costs: Sequence[AdapterCost]) -> str:
    """Return every table of a run."""
    parts = []
    for (shape, dtype), group in _groups(cases).items():
        parts += [f"### {shape}, {dtype}", _throughput(group), _rooflines(group), _settings(group)]
        parts += [_agreement(case) for case in group if case.agreement]
    parts += ["### What adapters cost", _costs(costs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(cases: Sequence[CaseResult], file: Path) -> None:
    """Draw throughput in bfloat16 over rows, one panel per base, and write it as PNG."""
    groups = _groups([case for case in cases if case.batch.dtype == "bfloat16"])
    figure = Figure(figsize=(5.5 * len(groups), 6), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, ((shape, _), group) in zip(axes, groups.items(), strict=True):
        rows = [len(case.batch.prompts) for case in group]
        for name in group[0].measured:
            speeds = [case.measured[name].tokens_per_s for case in group]
            axis.plot(rows, speeds, marker="o", linewidth=2.5 if name == OURS else 1.2, label=_TITLES[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(rows, [str(count) for count in rows])
        axis.set_ylim(bottom=0)
        axis.set(title=shape, xlabel="rows", ylabel="generated tokens per second")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(file, dpi=120)


def _groups(cases: Sequence[CaseResult]) -> dict[tuple[str, str], list[CaseResult]]:
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault((case.shape, case.batch.dtype), []).append(case)
    return groups


def _throughput(group: Sequence[CaseResult]) -> str:
    header = ["tokens/s (ours over it)", *(f"{len(case.batch.prompts)} rows" for case in group)]
    return _table(header, [[_TITLES[name], *(_speed(case, name) for case in group)] for name in group[0].measured])


def _speed(case: CaseResult, name: str) -> str:
    speed = f"{case.measured[name].tokens_per_s:.0f}"
    return speed if name == OURS else f"{speed} ({case.ratios[name]:.2f})"


def _rooflines(group: Sequence[CaseResult]) -> str:
    header = ["rows", "our step, ms", "MB read", "bandwidth, GB/s", "roofline, ms", "step over roofline"]
    lines = [(len(case.batch.prompts), case.roofline) for case in group if case.roofline]
    return _table(
        header,
        [
            [
                str(num_rows),
                f"{line.step_s * 1e3:.2f}",
                f"{line.step_bytes.total_bytes / 1e6:.1f}",
                f"{line.bytes_per_s / 1e9:.1f}",
                f"{line.least_s * 1e3:.2f}",
                f"{line.step_over_roofline:.2f}",
            ]
            for num_rows, line in lines
        ],
    )


def _settings(group: Sequence[CaseResult]) -> str:
    header = [
        "CTranslate2: batches at once, threads, rows of a batch",
        *(f"{len(case.batch.prompts)} rows" for case in group),
    ]
    return _table(
        header,
        [
            [_TITLES[name], *(", ".join(map(str, astuple(case.settings[name]))) for case in group)]
            for name in group[0].settings
        ],
    )


def _agreement(case: CaseResult) -> str:
    shares = ", ".join(f"{_TITLES[name]} {share:.2%}" for name, share in case.agreement.items())
    return f"Tokens equal to Medley's, {len(case.batch.prompts)} rows: {shares}."


def _costs(costs: Sequence[AdapterCost]) -> str:
    header = ["base", "rows", "throughput with a LoRA each over base", "time with a soft prompt each over real tokens"]
    return _table(
        header,
        [
            [cost.shape, str(cost.num_rows), f"{cost.loras_over_base:.3f}", f"{cost.prompts_over_tokens:.3f}"]
            for cost in costs
        ],
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marked = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in marked)
