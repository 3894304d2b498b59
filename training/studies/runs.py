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
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.batch import Pair
from training.config import LoopConfig, LoraRecipe, PromptRecipe, load_recipe
from training.data.adaptation import Case, load_splits, training_pairs
from training.errors import TrainingConfigError, TrainingError
from training.evaluate import generate_texts
from training.loop import seed_everything
from training.model import speed_up
from training.recipes.adaptation import RunPlaces, load_base
from training.recipes.lora import train_lora
from training.recipes.prompt import start_from_words, train_prompt
from training.studies.config import MethodRun

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BASE_ONLY = "base"
_RECIPES = {"lora": (LoraRecipe, train_lora), "prompt": (PromptRecipe, train_prompt)}
_TIMED_CASES, _TIMED_TOKENS = 5, 32
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
        peak_bytes: Most resident memory of the process over what it held before the base was loaded.
        disk_bytes: Size of the weights that are kept.
        token_s: Median over cases of the seconds a token takes, one request at a time.
    """

    scores: dict[str, list[float]]
    loss: float | None
    num_trainable: int
    num_total: int
    train_s: float
    num_tokens: int
    peak_bytes: int
    disk_bytes: int
    token_s: float


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
        TrainingError: an unknown method, missing data, or a mistake in the recipe.
        OSError: no base model where the recipe says.
    """
    before_bytes = _resident_bytes()
    recipe, train = _recipe(request)
    out = None
    if train is not None:
        out = folder / "result"
        train(recipe, RunPlaces(Path(request.data), folder / "training", out), resume=False)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES - before_bytes
    model, tokenizer = load_base(Path(recipe.base))
    num_base = model.num_parameters()
    cases = load_splits(recipe.data, recipe.adapter.prompt_template, Path(request.data)).validation[: request.num_cases]
    answering = PeftModel.from_pretrained(model, out).eval() if out else model.eval()
    answers = generate_texts(answering, tokenizer, [case.prompt for case in cases], recipe.data.max_new_tokens)
    cost = _cost(folder / "training") if out else {"loss": None, "num_trainable": 0, "train_s": 0.0, "num_tokens": 0}
    figures = RunFigures(
        scores=scores_of(answers, [case.references for case in cases]),
        num_total=num_base + cost["num_trainable"],
        peak_bytes=peak_bytes,
        disk_bytes=sum(path.stat().st_size for path in (out or Path(recipe.base)).glob("*.safetensors")),
        token_s=_seconds_a_token(answering, tokenizer, cases),
        **cost,
    )
    return asdict(figures)


def scores_of(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Return the F-measure of each answer beside its best reference, in percent, by metric.

    Raises:
        ValueError: an answer without references.
    """
    scorer = RougeScorer(list(METRICS), use_stemmer=True)
    each = [scorer.score_multi(several, answer) for answer, several in zip(answers, references, strict=True)]
    return {metric: [100 * scores[metric].fmeasure for scores in each] for metric in METRICS}


@dataclass(frozen=True)
class Task:
    """A task to learn, or to be measured on: its pairs, and its validation cases."""

    name: str
    pairs: list[Pair]
    cases: list[Case]
    max_new_tokens: int


def load_task(recipe: str, data: Path, tokenizer: PreTrainedTokenizerFast, num_cases: int) -> Task:
    """Return the data of a recipe under its own prompt template.

    Raises:
        TrainingError: a bad recipe file, or missing data.
    """
    kind = LoraRecipe if "lora:" in Path(recipe).read_text(encoding="utf-8") else PromptRecipe
    loaded = load_recipe(kind, Path(recipe))
    splits = load_splits(loaded.data, loaded.adapter.prompt_template, data)
    pairs = training_pairs(splits.train, tokenizer)
    return Task(loaded.adapter.name, pairs, splits.validation[:num_cases], loaded.data.max_new_tokens)


@dataclass(frozen=True)
class Prepared:
    """A base made ready to train by a method, with the settings of the method's recipe."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast
    loop: LoopConfig
    batch_tokens: int


def prepare(run: MethodRun, seed: int) -> Prepared:
    """Return the base made ready to train by a method, for a study that trains it itself.

    Raises:
        TrainingError: an unknown method, or a mistake in the recipe.
        OSError: no base model where the recipe says.
    """
    seed_everything(seed)
    kind = PromptRecipe if run.method == "prompt" else LoraRecipe
    recipe = load_recipe(kind, Path(run.recipe), [*run.overrides, f"loop.seed={seed}"])
    base, tokenizer = load_base(Path(recipe.base))
    speed_up(base)
    return Prepared(_wrapped(base, tokenizer, run.method, recipe), tokenizer, recipe.loop, recipe.batch_tokens)


def logits_of(model: torch.nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Run a model on a batch's tensors as the loop does.

    Raises:
        Nothing.
    """
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits


def _wrapped(
    base: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, method: str, recipe: LoraRecipe | PromptRecipe
) -> torch.nn.Module:
    if method == "full":
        return base.requires_grad_(requires_grad=True)
    if isinstance(recipe, PromptRecipe):
        shape = PromptTuningConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            num_virtual_tokens=recipe.prompt.num_virtual_tokens,
            token_dim=base.config.d_model,
        )
        model = get_peft_model(base, shape)
        start_from_words(model, tokenizer, recipe.prompt.init_text)
        return model
    if method != "lora":
        raise TrainingConfigError(f"forgetting is studied for full, lora and prompt, not for {method!r}")
    shape = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        target_modules=list(recipe.lora.target_modules),
    )
    return get_peft_model(base, shape)


def _recipe(request: RunRequest) -> tuple[Any, Any]:
    run = request.run
    if run.method == BASE_ONLY:
        return load_recipe(LoraRecipe, Path(run.recipe), list(run.overrides)), None
    if run.method not in _RECIPES:
        raise TrainingConfigError(f"unknown method {run.method!r}; known: {', '.join((BASE_ONLY, *_RECIPES))}")
    kind, train = _RECIPES[run.method]
    return load_recipe(kind, Path(run.recipe), [*run.overrides, f"loop.seed={request.seed}"]), train


def _cost(run: Path) -> dict[str, Any]:
    """Read what training left: its state, its log, and what it trained."""
    state = json.loads((run / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    records = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    with safe_open(run / "checkpoint" / "weights.safetensors", "pt") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - it is no dict
    return {
        "loss": [record["loss"] for record in records if "loss" in record][-1],
        "num_trainable": sum(int(torch.Size(size).numel()) for size in sizes),
        "train_s": state["elapsed_s"],
        "num_tokens": state["num_tokens"],
    }


def _seconds_a_token(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, cases: Sequence[Case]) -> float:
    taken = []
    for case in cases[:_TIMED_CASES]:
        inputs = tokenizer(case.prompt, return_tensors="pt", truncation=True)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                min_new_tokens=_TIMED_TOKENS,
                max_new_tokens=_TIMED_TOKENS,
                do_sample=False,
            )
        taken.append((time.perf_counter() - started) / _TIMED_TOKENS)
    return statistics.median(taken)


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
