"""Comparisons: one table of what ended well and what did not, each run done once, intervals that mean something."""

import json

import numpy as np
import pytest

from tests.fixtures.recipes import TICKETS
from training.errors import TrainingConfigError
from training.studies.config import CompareConfig, MethodRun, RankConfig, StudyPlaces

pytestmark = pytest.mark.torch
NUM_CASES = 40
RECIPE = f"""{TICKETS}
loop: {{max_steps: 4, learning_rate: 0.01, warmup_steps: 1, evaluate_every: 4, checkpoint_every: 4, log_every: 1,
  bfloat16: false, num_threads: 1, tensorboard: false}}
"""


class FakeWork:
    """Gives figures whose quality is the name's place in `order`, and fails where it is told to."""

    def __init__(self, order, fails=()):
        self.order, self.fails, self.calls = order, set(fails), []

    def __call__(self, request, folder):
        self.calls.append(f"{request.run.name}-{request.seed}")
        if request.run.name in self.fails:
            raise RuntimeError("no memory | left")
        noise = np.random.default_rng(request.seed).normal(0, 5, NUM_CASES)
        scores = (20 + 2 * self.order.index(request.run.name) + noise).tolist()
        return {
            "scores": dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), scores),
            "loss": 1.5,
            "num_trainable": 100,
            "num_total": 1000,
            "train_s": 2.0,
            "num_tokens": 500,
            "peak_bytes": 3_000_000,
            "disk_bytes": 400,
            "token_s": 0.004,
        }


def _config(*names, order=(), seeds=(1, 2)):
    runs = tuple(MethodRun(name, "base" if name == "base" else "lora", "none.yaml") for name in names)
    return CompareConfig(runs=runs, order=order, seeds=seeds)


def test_compare_order_that_holds_is_said_to_hold(tmp_path):
    from training.studies.compare import run

    names = ("base", "prompt", "lora", "full")
    report = run(_config(*names, order=names), StudyPlaces(tmp_path, tmp_path / "out"), FakeWork(names)).read_text()
    assert "base < prompt < lora < full holds" in report
    assert "| lora | 2 | " in report
    assert "| lora | 100 | 10.00 % | 2 | 250 | 3.0 | 0.00 | 4.0 |" in report
    assert (tmp_path / "out" / "quality.png").stat().st_size > 1000


def test_compare_order_the_other_way_round_is_not_hidden(tmp_path):
    from training.studies.compare import run

    config = _config("lora", "full", order=("lora", "full"))
    report = run(config, StudyPlaces(tmp_path, tmp_path / "out"), FakeWork(("full", "lora"))).read_text()
    assert "lora < full is not shown as a whole" in report
    assert "does not hold: it is the other way round" in report


def test_compare_runs_that_are_done_are_not_run_again_and_failed_ones_are(tmp_path):
    from training.studies.compare import run

    places, work = StudyPlaces(tmp_path, tmp_path / "out"), FakeWork(("base", "lora"), fails={"lora"})
    config = _config("base", "lora", order=("base", "lora"))
    report = run(config, places, work).read_text()
    assert work.calls == ["base-0", "lora-1", "lora-2"]
    assert "| lora | 0 | failed |" in report
    assert "- lora-1: RuntimeError: no memory | left" in report
    assert "not known, since `lora` has no figures" in report
    assert "RuntimeError" in (tmp_path / "out" / "runs" / "lora-1" / "error.txt").read_text()
    again = FakeWork(("base", "lora"))
    assert "base < lora holds" in run(config, places, again).read_text()
    assert again.calls == ["lora-1", "lora-2"]


def test_compare_settings_that_changed_are_run_again(tmp_path):
    from training.studies.compare import run

    places = StudyPlaces(tmp_path, tmp_path / "out")
    run(_config("base", seeds=(1,)), places, FakeWork(("base",)))
    again = FakeWork(("base",))
    run(CompareConfig(runs=_config("base").runs, num_cases=3), places, again)
    assert again.calls == ["base-0"]


def test_compare_two_rows_of_one_name_are_refused(tmp_path):
    from training.studies.compare import run

    with pytest.raises(TrainingConfigError, match="names of their own"):
        run(_config("lora", "lora"), StudyPlaces(tmp_path, tmp_path / "out"), FakeWork(()))


def test_rank_study_of_a_tiny_model_trains_each_rank_and_tables_it(tmp_path, tiny_base, tiny_data):
    from training.studies.ranks import run
    from training.studies.runs import train_here

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{RECIPE}\nbase: {tiny_base}\n")
    config = RankConfig(str(recipe), ranks=(1, 2, 4), seeds=(3,))
    report = run(config, StudyPlaces(tiny_data, tmp_path / "out"), train_here).read_text()
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    sizes = [row["figures"][0]["num_trainable"] for row in figures]
    assert sizes == [sizes[0], 2 * sizes[0], 4 * sizes[0]]
    assert f"| 4 | {sizes[2]:,} |" in report
    assert "failed" not in report
    one = figures[0]["figures"][0]
    assert len(one["scores"]["rougeL"]) == 2
    assert one["loss"] > 1.0
    assert one["num_tokens"] > 0
    assert one["token_s"] > 0
    assert one["disk_bytes"] > 2 * sizes[0]
    assert (tmp_path / "out" / "ranks.png").stat().st_size > 1000


@pytest.mark.parametrize(("method", "is_served"), [("base", True), ("full", True), ("bottleneck", False)])
def test_run_of_any_kind_of_result_has_its_figures(tmp_path, tiny_base, tiny_data, method, is_served):
    from training.base_model import load_base
    from training.studies.runs import RunRequest, train_here

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{RECIPE}\nbase: {tiny_base}\n")
    figures = train_here(RunRequest(MethodRun("one", method, str(recipe)), 3, 2, str(tiny_data)), tmp_path)
    num_base = load_base(str(tiny_base)).model.num_parameters()
    trained = {"base": 0, "full": num_base}.get(method, figures["num_trainable"])
    assert figures["num_trainable"] == trained
    assert figures["num_total"] == num_base + (trained if method == "bottleneck" else 0)
    assert (figures["token_s"] is not None) == is_served
    assert {len(scores) for scores in figures["scores"].values()} == {2}
    assert (figures["train_s"] > 0) == (method != "base")
    assert figures["disk_bytes"] > 0


def test_run_apart_that_crashes_says_its_last_word(tmp_path, tiny_data):
    from training.studies.runs import RunRequest, StudyRunError, train_apart

    (tmp_path / "run").mkdir()
    request = RunRequest(MethodRun("odd", "lora", str(tmp_path / "none.yaml")), 1, 2, str(tiny_data))
    with pytest.raises(StudyRunError, match=r"exit status 1: .*cannot read recipe"):
        train_apart(request, tmp_path / "run")
