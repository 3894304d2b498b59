"""How a study reaches the recipes: train this method with these settings, and say what came of it and what it cost.

The one module of the studies that knows recipes, base models and adapter folders. It does not know what is compared.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from adapters.scoring.overlap import ReferenceMode
from adapters.scoring.rouge_family import RougeFamily
from training.answers import FolderAnswers
from training.base_model import Base, load_base
from training.batch import Pair
from training.checkpoint import RunFolder
from training.config import AdapterRecipe, LoopConfig, load_adapter_recipe, method_of
from training.data.adaptation import Case, Splits
from training.data.examples import load_examples
from training.errors import TrainingConfigError, TrainingError
from training.methods import METHODS, Method
from training.model import speed_up
from training.objective import Objective, causal_logits, seq2seq_logits
from training.recipes.adaptation import RunPlaces
from training.recipes.forms import BaseForm, Form, PeftForm
from training.recipes.train import prepare, train_adapter
from training.studies.config import MethodRun

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BASE_ONLY = "base"
# The base answers by a recipe for full fine-tuning, whose training is left out.
_UNTRAINED = "full"
_TIMED_CASES = 12
_RSS_PAGE_BYTES, _MAXRSS_BYTES = resource.getpagesize(), 1024


class StudyRunError(TrainingError):
    """A run in a process of its own ended without figures."""


@dataclass(frozen=True)
class RunRequest:
    """One run of one method.

    Attributes:
        run: Method, recipe and overrides.
        seed: Of the run, whatever the recipe says.
        num_cases: Most validation cases to measure the result on; every run gets the same ones.
        data: Folder of the corpora.
    """

    run: MethodRun
    seed: int
    num_cases: int
    data: str


@dataclass(frozen=True)
class RunFigures:
    """What came of a run, and what it cost.

    Attributes:
        scores: Metric → F-measure of each validation case, in percent, in the order of the cases.
        loss: Mean training loss over the last logged steps; None where nothing was trained.
        num_trainable: Trained parameters.
        num_total: All parameters of the model in training.
        train_s: Seconds in training steps.
        num_tokens: Tokens trained on, padding left out.
        peak_bytes: Most resident memory of the process over what it held before the base was loaded; on a GPU, the
            most that PyTorch held there.
        disk_bytes: Size of the weights that are kept.
        token_s: Median over cases of an answer's seconds over its tokens, as the engine serves it, one request at a
            time; None where it is not served.
    """

    scores: dict[str, list[float]]
    loss: float | None
    num_trainable: int
    num_total: int
    train_s: float
    num_tokens: int
    peak_bytes: int
    disk_bytes: int
    token_s: float | None


Worker = Callable[[RunRequest, Path], dict[str, Any]]


def train_apart(request: RunRequest, folder: Path) -> dict[str, Any]:
    """Do a run in a process of its own, so that its memory is its own and its crash ends nothing else.

    Raises:
        StudyRunError: the process ended without figures; the message is its last word.
    """
    answer = folder / "run.json"
    command = [sys.executable, "-m", "training.studies.runs", json.dumps(asdict(request)), str(folder)]
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603
    if code:
        lines = (folder / "output.txt").read_text(encoding="utf-8").strip().splitlines()
        raise StudyRunError(f"exit status {code}: {lines[-1] if lines else 'no output'}")
    return json.loads(answer.read_text(encoding="utf-8"))


def train_here(request: RunRequest, folder: Path) -> dict[str, Any]:
    """Do a run in this process; its peak memory is only its own if nothing larger was done here before.

    Raises:
        TrainingError: an unknown method, missing data, a mistake in the recipe, or a run that came to a bad end.
    """
    before_bytes = _resident_bytes()
    recipe = _recipe(request.run, request.seed)
    base = load_base(recipe.base)
    cost, kept, form = {"loss": None, "num_trainable": 0, "train_s": 0.0, "num_tokens": 0}, base.folder, None
    if request.run.method != BASE_ONLY:
        kept = folder / "result"
        places = RunPlaces(Path(request.data), folder / "training", kept)
        trained = train_adapter(recipe, places, resume=False)
        cost, form = _cost(trained.model, RunFolder(places.run)), trained.form
    peak_bytes = _peak_bytes(before_bytes)
    cases = _examples(recipe, base, Path(request.data)).validation[: request.num_cases]
    answers, token_s = _answers(form, base, kept, [case.prompt for case in cases], recipe.data.max_new_tokens)
    figures = RunFigures(
        scores=scores_of(answers, [case.references for case in cases]),
        num_total=base.model.num_parameters() + (0 if isinstance(form, BaseForm) else cost["num_trainable"]),
        peak_bytes=peak_bytes,
        disk_bytes=sum(path.stat().st_size for path in kept.glob("*.safetensors")),
        token_s=token_s,
        **cost,
    )
    return asdict(figures)


def scores_of(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Return the F-measure of each answer beside its best reference, in percent, by metric.

    Raises:
        ValueError: an answer without references.
    """
    family = RougeFamily()
    each = [family.score(answer, several) for answer, several in zip(answers, references, strict=True)]
    return {metric: [100 * scores[f"{metric}_{ReferenceMode.BEST}"].f for scores in each] for metric in METRICS}


@dataclass(frozen=True)
class Task:
    """A task to learn, or to be measured on: its pairs, and its validation cases."""

    name: str
    pairs: list[Pair]
    cases: list[Case]
    max_new_tokens: int


def load_task(recipe: str, data: Path, base: Base, num_cases: int) -> Task:
    """Return the data of a recipe under its own prompt template.

    Raises:
        TrainingError: a bad recipe file, or missing data.
    """
    loaded = _recipe(MethodRun(recipe, method_of(METHODS, Path(recipe)), recipe), seed=0)
    splits = _examples(loaded, base, data)
    return Task(
        loaded.adapter.name, base.pairs(splits.train), splits.validation[:num_cases], loaded.data.max_new_tokens
    )


@dataclass(frozen=True)
class Learner:
    """A base made ready to train by a method, with the settings of the method's recipe."""

    base: Base
    model: torch.nn.Module
    loop: LoopConfig
    batch_tokens: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The base's own."""
        return self.base.tokenizer

    @property
    def objective(self) -> Objective:
        """How a batch is run through this kind of base."""
        return seq2seq_logits if self.base.is_encoder_decoder else causal_logits


def make_learner(run: MethodRun, seed: int) -> Learner:
    """Return the base made ready to train by a method, for a study that trains it itself.

    Raises:
        TrainingError: an unknown method, or a mistake in the recipe.
    """
    recipe = _recipe(run, seed)
    prepared = prepare(recipe)
    speed_up(prepared.model)
    return Learner(prepared.base, prepared.model, recipe.loop, recipe.batch_tokens)


def _examples(recipe: AdapterRecipe[Method], base: Base, data: Path) -> Splits:
    return load_examples(recipe.data, data, base.tokenizer, prompt_template=recipe.adapter.prompt_template)


def _recipe(run: MethodRun, seed: int) -> AdapterRecipe[Method]:
    method = _UNTRAINED if run.method == BASE_ONLY else run.method
    if method not in METHODS:
        raise TrainingConfigError(f"unknown method {run.method!r}; known: {', '.join((BASE_ONLY, *METHODS))}")
    return load_adapter_recipe(method, METHODS, Path(run.recipe), [*run.overrides, f"loop.seed={seed}"])


def _cost(model: torch.nn.Module, run: RunFolder) -> dict[str, Any]:
    """Read what training left: its state, its log, and what it trained."""
    state = json.loads((run.checkpoint(run.checkpoint_steps()[-1]) / "state.json").read_text(encoding="utf-8"))
    records = map(json.loads, run.log.read_text(encoding="utf-8").splitlines())
    return {
        "loss": [record["loss"] for record in records if "loss" in record][-1],
        "num_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_s": state["elapsed_s"],
        "num_tokens": state["num_tokens"],
    }


def _answers(
    form: Form | None, base: Base, kept: Path, prompts: Sequence[str], max_new_tokens: int
) -> tuple[list[str], float | None]:
    """Return what the kept weights answer, and the seconds a token takes where the engine serves them."""
    adapters = [kept] if isinstance(form, PeftForm) else []
    with FolderAnswers(kept if isinstance(form, BaseForm) else base.folder, max_new_tokens) as answers:
        if form is not None and not isinstance(form, PeftForm | BaseForm):
            return form.answer(kept, prompts, answers), None
        texts = answers.answer(adapters, prompts)
        return texts, statistics.median(
            _seconds_a_token(answers, adapters, prompt, base) for prompt in prompts[:_TIMED_CASES]
        )


def _seconds_a_token(answers: FolderAnswers, adapters: Sequence[Path], prompt: str, base: Base) -> float:
    started = time.perf_counter()
    [text] = answers.answer(adapters, [prompt])
    return (time.perf_counter() - started) / len(base.tokenizer(text)["input_ids"])


def _peak_bytes(before_bytes: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES - before_bytes


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _RSS_PAGE_BYTES


def _main(arguments: list[str]) -> None:
    """Do the run that :func:`train_apart` asks for."""
    values, folder = json.loads(arguments[0]), Path(arguments[1])
    run = values.pop("run")
    run = MethodRun(**run | {"overrides": tuple(run["overrides"])})
    figures = train_here(RunRequest(run=run, **values), folder)
    (folder / "run.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1:])
