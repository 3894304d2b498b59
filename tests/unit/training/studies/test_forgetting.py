"""Forgetting: what F is, that it is seen where tasks conflict, and that each way to hold it back does so."""

import json
from statistics import fmean

import pytest

from training.errors import TrainingConfigError

pytestmark = pytest.mark.torch
RECIPE = """
adapter: {{name: {name}, task: summarization, licence: MIT, data_licence: MIT, data_title: Tickets,
  description: Sums up., prompt_template: "Sum up.\\n\\n{{{{ text }}}}", limits: Many.}}
data:
  sources: [{{name: dialogsum, licence: MIT, files: [{{path: summaries/dialogsum.jsonl.xz}}],
    columns: {{text: dialogue, references: {target}}}}}]
  split: {{held_out_percent: 40.0}}
  max_new_tokens: 5
loop: {{max_steps: 2, learning_rate: 0.01, warmup_steps: 1, evaluate_every: 9, checkpoint_every: 9, log_every: 1,
  bfloat16: false, num_threads: 1, tensorboard: false}}
batch_tokens: 300
base: {base}
"""


def test_forgetting_is_the_best_before_less_the_last_averaged():
    from training.studies.sequence import forgetting, summary

    matrix = [[10, 5, 40, 30], [50, 6, 45, 20], [20, 60, 25, 25]]
    assert forgetting(matrix, [0]) == 30
    assert forgetting(matrix, [2, 3]) == fmean([20, 5])
    assert summary(matrix, 2) == {"last_task": 60, "f_earlier": 30, "f_held_out": 12.5}
    assert summary([[1], [2]], 1) == {"last_task": 2}
    assert summary(matrix, 2, [[40, 30], [40, 26]])["f_switched_off"] == 2
    assert forgetting([[10], [12]], [0]) == -2


@pytest.fixture
def two_tasks(tiny_base):
    """A model, and two tasks that want other answers, each always the same one."""
    from training.base_model import load_base
    from training.config import LoopConfig
    from training.data.adaptation import Case
    from training.model import speed_up
    from training.studies.runs import Learner, Task

    def task(name, question, answer):
        cases = [Case(f"{n}", f"{question}\n\nI want {n} tickets.", (answer,)) for n in range(12)]
        return Task(name, base.pairs(cases), cases[:2], 6)

    base = load_base(str(tiny_base))
    speed_up(base.model.requires_grad_(requires_grad=True))
    loop = LoopConfig(
        seed=3,
        max_steps=80,
        learning_rate=0.005,
        warmup_steps=2,
        bfloat16=False,
        num_threads=1,
        checkpoint_every=99,
        log_every=99,
        tensorboard=False,
    )
    return Learner(base, base.model, loop, 400), [
        task("first", "Sum up.", "book a table"),
        task("second", "Who is it?", "name please"),
    ]


def _figures(two_tasks, folder, mitigation="none", strength=0.0):
    import copy
    from dataclasses import replace

    from training.studies.sequence import Restraint, learn_in_sequence, summary

    learner, tasks = two_tasks
    own = replace(learner, model=copy.deepcopy(learner.model))
    found = learn_in_sequence(own, tasks, [], Restraint(mitigation, strength, 4), folder / f"{mitigation}-{strength}")
    return found.matrix, summary(found.matrix, 2)


def test_forgetting_falls_over_a_sweep_of_strengths_and_nought_is_plain(tmp_path, two_tasks):
    plain, figures = _figures(two_tasks, tmp_path)
    assert plain[1][0] > 90
    assert figures["last_task"] > 90
    assert figures["f_earlier"] > 50
    sweeps = {"replay": (0.0, 0.5), "l2sp": (0.01, 100.0), "ewc": (0.0, 1e6), "kl": (0.01, 30.0)}
    for mitigation, strengths in sweeps.items():
        weak, strong = (_figures(two_tasks, tmp_path, mitigation, strength) for strength in strengths)
        assert strengths[0] > 0 or weak[0] == plain
        assert figures["f_earlier"] >= weak[1]["f_earlier"]
        assert strong[1]["f_earlier"] < 0.2 * figures["f_earlier"], mitigation


@pytest.mark.parametrize(("method", "learning_rate"), [("lora", 0.05), ("prompt", 1.0)])
def test_learn_in_sequence_adapter_that_is_switched_off_has_forgotten_nothing(
    method, learning_rate, tmp_path, two_tasks
):
    from dataclasses import replace

    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    from training.studies.sequence import Restraint, learn_in_sequence

    learner, (first, second) = two_tasks
    task_type = learner.base.task_type
    config = (
        LoraConfig(task_type=task_type, r=8, target_modules="all-linear")
        if method == "lora"
        else PromptTuningConfig(task_type=task_type, num_virtual_tokens=8, num_transformer_submodules=1)
    )
    base_knows = learn_in_sequence(learner, [first], [], Restraint(), tmp_path / "base")
    assert base_knows.matrix[-1][0] > 90
    loop = replace(learner.loop, learning_rate=learning_rate)
    own = replace(learner, model=get_peft_model(learner.model, config), loop=loop)
    found = learn_in_sequence(own, [second], [first], Restraint(), tmp_path / method)
    assert found.matrix[-1][1] < 50, "with it on, the first task is lost"
    assert found.switched_off == [[base_knows.matrix[-1][0]]] * 2


def test_forgetting_study_tables_every_method_and_reports_failures(tmp_path, tiny_base, tiny_data):
    from training.studies.config import ForgettingConfig, MethodRun, StudyPlaces, Sweep
    from training.studies.forgetting import run

    recipes = []
    for name, target in (("sums", "summaries"), ("topics", "topics"), ("held", "topics")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(RECIPE.format(name=name, target=target, base=tiny_base))
        recipes.append(str(path))
    config = ForgettingConfig(
        tasks=tuple(recipes[:2]),
        held_out=(recipes[2],),
        methods=tuple(MethodRun(name, name, recipes[0]) for name in ("full", "lora", "ia9")),
        num_cases=2,
        num_fisher_examples=2,
        sweeps=(Sweep("ewc", (0.0, 1.0)),),
    )
    places = StudyPlaces(tiny_data, tmp_path / "out")
    report = run(config, places).read_text()
    assert "| ia9 | 0 | failed |" in report
    assert "- ia9-plain-17: TrainingConfigError: unknown method 'ia9'" in report
    assert "| after topics |" in report
    assert "held (held out)" in report
    assert "F, held-out tasks: `lora` forgets" in report
    lora = next(line for line in report.splitlines() if line.startswith("| lora |")).split("|")
    assert lora[5].strip() == "0.0"
    assert (tmp_path / "out" / "sweeps.png").stat().st_size > 1000
    names = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert names == {"full-plain-17", "lora-plain-17", "ia9-plain-17", "full-ewc-1-17"}
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [len(figures[0]["matrices"][0]), len(figures[0]["matrices"][0][0])] == [3, 3]


def test_restraint_unknown_or_out_of_range_is_refused():
    from training.studies.sequence import Restraint

    with pytest.raises(TrainingConfigError, match="not 'l3'"):
        Restraint("l3", 1.0)
    with pytest.raises(TrainingConfigError, match="below 1"):
        Restraint("replay", 1.0)
