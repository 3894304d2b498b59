"""`medley study memory`: what a training step takes, planned from a config alone, and measured beside it.

Planned and measured are made apart: the plan by a dry run without data, the measure by the allocator's own record.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, T5Config

from training.errors import TrainingConfigError
from training.studies.config import MemoryConfig, MemoryShape, StudyPlaces
from training.studies.ledger import say
from training.studies.memory_measured import measure_steps
from training.studies.memory_model import build, dtype_of
from training.studies.memory_plan import MemoryPlan, plan_step
from training.studies.report import megabytes, table, write_report

FLAN_T5_BASE = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
}
_COURSE_LORA = MemoryConfig(rank=32, target_modules=("q", "v"))
_READING = """
- *Weights* are all parameters and buffers, frozen ones too. *Optimizer* is two float32 moments a trained parameter, and
  a float32 master where the weights are narrower. *Activations* are what the forward pass leaves for the backward pass.
- *Peak* is weights and optimizer states with the larger of two moments: the backward pass, which turns activations into
  gradients, or the update, which holds gradients and two float32 arrays of its own.
- The batch is planned with padding in it, which costs masks. Memory the allocator keeps but does not use, the
  libraries' own and the data's are not in it: leave a tenth free.
- `qlora` counts linear layers as NF4 with double quantization, and a wide copy of one layer at a time. The output head
  stays wide, and what transformers keeps so: the last layer of T5's feed-forward blocks.
"""


def run(config: MemoryConfig, places: StudyPlaces) -> Path:
    """Plan every method and shape, measure those that are to be measured, and return the report's path.

    Raises:
        TrainingConfigError: an unknown method or dtype, or no model config where the study says.
    """
    shape = _shape(config.model)
    rows = [_row(shape, method, batch, config) for method in config.methods for batch in config.shapes]
    headline = headline_counts()
    sections = {
        "Plan and measurement": _plan_text(config, rows),
        "Trainable parameters": _parameter_text(rows),
        "LoRA's headline counts": _headline_text(headline),
        "How to read this": _READING,
    }
    title = f"Memory of a training step: {Path(config.model).name}"
    return write_report(places.out, title, sections, {"rows": rows, "headline": headline})


def headline_counts() -> dict[str, int]:
    """Return parameters and bytes of the course's LoRA on FLAN-T5-base, counted on the meta device.

    Raises:
        Nothing.
    """
    shape = T5Config(**FLAN_T5_BASE)
    model = build(shape, "lora", _COURSE_LORA, device="meta")
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The published weights have an output head of their own; a model made from a config shares it with the embeddings.
    num_total = sum(p.numel() for p in model.parameters()) + shape.vocab_size * shape.d_model
    return {
        "num_trainable": num_trainable,
        "num_total": num_total,
        "adapter_bytes": 4 * num_trainable,
        "base_bytes": 4 * (num_total - num_trainable),
    }


def plan(shape: PretrainedConfig, method: str, batch: MemoryShape, config: MemoryConfig) -> MemoryPlan:
    """Return the plan of one step.

    Raises:
        TrainingConfigError: an unknown method or dtype.
    """
    model = build(shape, method, config, device="meta")
    return plan_step(model.to(dtype_of(config)), batch)


def measure(shape: PretrainedConfig, method: str, batch: MemoryShape, config: MemoryConfig) -> int:
    """Return the most bytes held during real steps of the same kind on the study's device.

    Raises:
        TrainingConfigError: an unknown method or dtype, or one that can only be planned.
    """
    device = config.device
    return measure_steps(lambda: build(shape, method, config, device=device), batch, dtype_of(config), device)


def _shape(model: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise TrainingConfigError(f"no model config in {model!r}: {error}") from error


def _row(shape: PretrainedConfig, method: str, batch: MemoryShape, config: MemoryConfig) -> dict[str, object]:
    planned = plan(shape, method, batch, config)
    measured = measure(shape, method, batch, config) if method in config.measured else None
    say(f"{method}, {batch.rows} x ({batch.source} + {batch.target}) tokens: {megabytes(planned.peak)} MB planned")
    return {"method": method, "batch": asdict(batch), **asdict(planned), "peak": planned.peak, "measured": measured}


def _plan_text(config: MemoryConfig, rows: list[dict]) -> str:
    header = ["method", "rows x (encoder + decoder)", "weights", "optimizer", "gradients", "activations", "peak"]
    parts = ("weights", "optimizer", "gradients", "activations", "peak")
    lines = [
        [
            row["method"],
            "{rows} x ({source} + {target})".format(**row["batch"]),
            *(megabytes(row[part]) for part in parts),
            megabytes(row["measured"]) if row["measured"] else "",
            f"{100 * (row['peak'] / row['measured'] - 1):+.1f} %" if row["measured"] else "",
        ]
        for row in rows
    ]
    checkpointing = ", gradient checkpointing" if config.gradient_checkpointing else ""
    return f"MB of a million bytes; {config.dtype}{checkpointing}.\n\n" + table(
        [*header, "measured peak", "plan beside it"], lines
    )


def _parameter_text(rows: list[dict]) -> str:
    counts = {row["method"]: (row["num_trainable"], row["num_total"]) for row in rows}
    lines = [[name, f"{some:,}", f"{every:,}", f"{100 * some / every:.2f} %"] for name, (some, every) in counts.items()]
    return table(["method", "trained", "of", "share"], lines)


def _headline_text(counts: dict[str, int]) -> str:
    mebibytes = {name: counts[name] / 2**20 for name in ("adapter_bytes", "base_bytes")}
    return (
        f"LoRA of rank 32 on q and v of FLAN-T5-base trains {counts['num_trainable']:,} of {counts['num_total']:,} "
        f"parameters ({100 * counts['num_trainable'] / counts['num_total']:.2f} %). In float32 the adapter takes "
        f"{megabytes(counts['adapter_bytes'])} MB ({mebibytes['adapter_bytes']:.1f} MiB), the base "
        f"{megabytes(counts['base_bytes'])} MB ({mebibytes['base_bytes']:.1f} MiB)."
    )
