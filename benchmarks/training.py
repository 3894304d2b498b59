"""``python -m benchmarks training``: our training loop beside a plain ``Seq2SeqTrainer`` with PEFT, on the same LoRA.

Same base (``medley-mini``), same LoRA, same pairs of random tokens with a dialogue data set's lengths, about as many
tokens a step; the sides in turn, each run in a process of its own, so that its memory is its own. Tokens are those
that are not padding.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine
from training.batch import Batch, Pair, length_batches

OURS = "ours"
PLAIN = {"seq2seq_trainer_float32": False, "seq2seq_trainer_bfloat16": True}
_SIDES = (OURS, *PLAIN)
_RECIPE = Path("training/configs/dialogsum.yaml")
_NUM_PAIRS, _LIMITS = 4_000, (512, 128)
# Means and deviations of the logarithms of DialogSum's lengths, in medley-mini's tokens.
_SOURCE_LOG, _TARGET_LOG = (5.1, 0.45), (3.6, 0.35)
_NUM_WARM_STEPS = 3


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One side's run.

    Attributes:
        tokens_per_s: Tokens that are not padding, per second of wall time, after the first steps.
        padding: Padding's share of what was computed.
        peak_mb: Most resident memory of the process, in MB.
    """

    tokens_per_s: float
    padding: float
    peak_mb: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``training`` to the benchmarks' command line."""
    parser = commands.add_parser("training", help="our training loop beside Seq2SeqTrainer with PEFT")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each run (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--batch-tokens", type=int, default=8_000, help="tokens a step (default 8000)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.side:
        print(json.dumps(asdict(_run_side(arguments))))
        return
    runs: dict[str, list[TrainingRun]] = {side: [] for side in _SIDES}
    for turn in range(arguments.rounds):
        for side in _SIDES[:: -1 if turn % 2 else 1]:
            runs[side].append(_in_a_process(side, arguments))
            print(f"{side}: {runs[side][-1].tokens_per_s:,.0f} tokens/s, {runs[side][-1].peak_mb:,.0f} MB", flush=True)
    figures = {f"ours_over_{side}": _ratio(runs[OURS], runs[side]) for side in PLAIN}
    for key, figure in figures.items():
        print(f"{key}: {figure:.2f}", flush=True)
    if arguments.json:
        sides = {side: [asdict(run) for run in several] for side, several in runs.items()}
        results = {**figures, "runs": sides, **describe_machine(arguments.threads)}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _ratio(ours: Sequence[TrainingRun], theirs: Sequence[TrainingRun]) -> float:
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, theirs, strict=True))


def _in_a_process(side: str, arguments: argparse.Namespace) -> TrainingRun:
    options = {"steps": arguments.steps, "batch-tokens": arguments.batch_tokens, "threads": arguments.threads}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks", "training", "--side", side, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - ourselves
    return TrainingRun(**json.loads(done.stdout.splitlines()[-1]))


def _run_side(arguments: argparse.Namespace) -> TrainingRun:
    watch = _Watch()
    pairs = _pairs()
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as folder:
        if arguments.side == OURS:
            _train_ours(pairs, arguments, Path(folder), watch)
        else:
            _train_plain(pairs, arguments, Path(folder), watch, is_bfloat16=PLAIN[arguments.side])
    return watch.figures()


class _Watch:
    """Notes what each step computed and when it was over."""

    def __init__(self) -> None:
        self._num_tokens: list[int] = []
        self._num_computed: list[int] = []
        self._ends_s: list[float] = []

    def batch(self, batch: Batch) -> None:
        """Note the next step's batch."""
        self._num_tokens.append(batch.num_tokens)
        self._num_computed.append(batch.input_ids.size + batch.labels.size)

    def step_ended(self) -> None:
        """Note that a step is over."""
        self._ends_s.append(time.monotonic())

    def figures(self) -> TrainingRun:
        """Return what was seen after the first steps."""
        steps = slice(_NUM_WARM_STEPS, len(self._ends_s))
        num_tokens, num_computed = sum(self._num_tokens[steps]), sum(self._num_computed[steps])
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        seconds = self._ends_s[-1] - self._ends_s[_NUM_WARM_STEPS - 1]
        return TrainingRun(num_tokens / seconds, 1 - num_tokens / num_computed, peak_mb)


def _pairs() -> list[Pair]:
    generator = np.random.default_rng(0)

    def lengths(log: tuple[float, float], limit: int) -> list[int]:
        drawn = generator.lognormal(*log, _NUM_PAIRS)
        return [int(length) for length in np.clip(drawn, 8, limit)]

    sources, targets = lengths(_SOURCE_LOG, _LIMITS[0]), lengths(_TARGET_LOG, _LIMITS[1])
    return [
        Pair(generator.integers(10, 4_000, source).tolist(), generator.integers(10, 4_000, target).tolist())
        for source, target in zip(sources, targets, strict=True)
    ]


def _train_ours(pairs: list[Pair], arguments: argparse.Namespace, folder: Path, watch: _Watch) -> None:
    from training.checkpoint import RunFolder
    from training.config import fingerprint, load_adapter_recipe
    from training.loop import Trainer
    from training.methods import METHODS
    from training.model import speed_up
    from training.recipes.train import prepare

    recipe = load_adapter_recipe("lora", METHODS, _RECIPE)
    num_steps = _NUM_WARM_STEPS + arguments.steps
    loop = replace(recipe.loop, max_steps=num_steps, num_threads=arguments.threads, tensorboard=False, log_every=10**6)
    prepared = prepare(recipe)
    speed_up(prepared.model)

    def batches(epoch: int) -> Iterator[Batch]:
        for batch in length_batches(pairs, arguments.batch_tokens, _LIMITS, 0, str(epoch)):
            watch.batch(batch)
            yield batch
            watch.step_ended()

    Trainer(
        model=prepared.model,
        config=replace(loop, checkpoint_every=10**6),
        batches=batches,
        folder=RunFolder(folder),
        fingerprint=fingerprint(recipe),
    ).run()


def _train_plain(
    pairs: list[Pair], arguments: argparse.Namespace, folder: Path, watch: _Watch, *, is_bfloat16: bool
) -> None:
    """Train as a plain script would: batches of as many rows each, padded to the longest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    torch.set_num_threads(arguments.threads)
    base = "adapters/library/medley-mini"
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=32, lora_alpha=64, target_modules="all-linear")
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32), lora)
    collate = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base), model=model)
    mean_tokens = sum(len(pair.source) + len(pair.target) for pair in pairs) / len(pairs)

    def watched(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        watch.batch(Batch(*(batch[key].numpy() for key in ("input_ids", "attention_mask", "labels"))))
        return batch

    class StepWatch(TrainerCallback):
        """Tells the watch when a step is over."""

        def on_step_end(self, *_args: object, **_kwargs: object) -> None:
            watch.step_ended()

    settings = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=max(1, round(arguments.batch_tokens / mean_tokens)),
        max_steps=_NUM_WARM_STEPS + arguments.steps,
        learning_rate=0.002,
        bf16=is_bfloat16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"input_ids": p.source, "attention_mask": [1] * len(p.source), "labels": p.target} for p in pairs]
    parts = {"model": model, "args": settings, "train_dataset": rows, "data_collator": watched}
    Seq2SeqTrainer(**parts, callbacks=[StepWatch()]).train()
