"""Evaluations: figures with intervals beside the base, the report people read, and the JSON programs read."""

import json

import pytest

pytestmark = pytest.mark.torch
DIALOGUE = "#Person1#: I want 3 tickets.\n#Person2#: That is $30, please."


def cases():
    from training.evaluation import EvaluationCase

    return [
        EvaluationCase(DIALOGUE, ("#Person1# buys 3 tickets.", "Three tickets are sold.")),
        EvaluationCase("#Person1#: It is cold outside.\n#Person2#: Stay in, then.", ("It is cold outside",)),
        EvaluationCase("#Person1#: Bye.", ("They part.",)),
    ]


PREDICTIONS = {
    "base": ["That is", "cold cold cold cold", ""],
    "good": ["#Person1# buys 3 tickets.", "It is cold outside", "They part."],
    "hacked": ["tickets 3 buys #Person1#", "outside cold it is", "part they"],
}


@pytest.fixture(scope="module")
def result():
    from training.evaluation import EvaluationOptions, score_systems

    return score_systems(PREDICTIONS, cases(), EvaluationOptions())


def test_score_systems_means_lie_in_their_intervals_and_differences_are_paired(result):
    base, good, hacked = result.systems
    assert good.means["rouge1_best"].value == hacked.means["rouge1_best"].value == pytest.approx(100.0)
    assert hacked.means["rouge2_best"].value < good.means["rouge2_best"].value == pytest.approx(100.0)
    assert base.means["repetition3"].value == pytest.approx(50 / 3)
    assert base.beside_base == {}
    for figure, mean in base.means.items():
        assert mean.low <= mean.value <= mean.high
        assert good.beside_base[figure].value == pytest.approx(good.means[figure].value - mean.value)
    assert good.beside_base["rouge1_best"].is_clear
    assert good.bleu.value == pytest.approx(100.0)
    assert good.bleu_signature.startswith("nrefs:var|")


def test_score_systems_values_are_rows_for_intervals_over_seeds(result):
    import numpy as np

    from adapters.scoring.bootstrap import seeds_interval

    table = np.stack([system.values("rouge2_best") for system in result.systems[1:]])
    assert table.shape == (2, 3)
    assert seeds_interval(table).value == pytest.approx(table.mean())
    with pytest.raises(KeyError):
        result.systems[0].values("rouge3")


def test_score_systems_uneven_or_no_cases_is_refused():
    from training.evaluation import EvaluationOptions, score_systems

    with pytest.raises(ValueError, match="no cases"):
        score_systems({"base": []}, [], EvaluationOptions())
    with pytest.raises(ValueError, match="zip"):
        score_systems({"base": ["one"]}, cases(), EvaluationOptions())


def test_report_markdown_shows_figures_signs_of_hacking_and_examples(result):
    from training.evaluation_report import report_markdown

    report = report_markdown(result, num_examples=2)
    assert "3 cases, greedy, at most 64 new tokens" in report
    assert "`nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:" in report
    assert "| hacked | 100.0 [100.0, 100.0] |" in report
    assert "| | ROUGE-1 | ROUGE-2 | ROUGE-L | ROUGE-Lsum | ROUGE-W1.2 | ROUGE-S4 | ROUGE-SU4 | BLEU |" in report
    assert "## Beside the base" in report
    assert "> #Person1#: I want 3 tickets.  \n> #Person2#: That is $30, please." in report
    assert (
        "- **reference**: #Person1# buys 3 tickets.\n- **reference**: Three tickets are sold.\n- **base**: That is\n"
        in report
    )
    assert report.count("### Case") == 2
    tables = [[line.count("|") for line in part.splitlines()] for part in report.split("\n\n") if part.startswith("| ")]
    assert len(tables) == 3
    assert all(len(set(table)) == 1 for table in tables)


def test_report_markdown_empty_answer_and_long_dialogue_are_readable():
    from training.evaluation import EvaluationCase, EvaluationOptions, score_systems
    from training.evaluation_report import report_markdown

    long = [EvaluationCase("word " * 400, ("a",))]
    report = report_markdown(score_systems({"base": [""]}, long, EvaluationOptions()))
    assert "- **base**: *(nothing)*" in report
    assert max(map(len, report.splitlines())) < 700
    assert "Beside" not in report


def test_report_json_holds_every_answer_and_figure(result):
    from training.evaluation_report import report_json

    read = json.loads(report_json(result))
    assert [system["predictions"] for system in read["systems"]] == list(PREDICTIONS.values())
    assert read["systems"][1]["figures"][0]["rouge1_best"] == pytest.approx(100.0)
    assert set(read["systems"][1]["means"]["rouge1_best"]) == {"value", "low", "high"}
    assert read["options"]["bootstrap"]["seed"] == 13
    assert read["cases"][0]["source"] == DIALOGUE


@pytest.fixture
def tickets(tmp_path, tiny_base):
    """A LoRA folder with a manifest of its own template."""
    from peft import LoraConfig, TaskType, get_peft_model

    from adapters.manifest import AdapterKind, AdapterManifest
    from training.base_model import load_base
    from training.export import export_adapter, write_manifest

    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=2, target_modules=["q"])
    folder = tmp_path / "tickets"
    export_adapter(get_peft_model(load_base(str(tiny_base)).model, config), folder, "tiny-base")
    write_manifest(AdapterManifest("tickets", AdapterKind.LORA, prompt_template="How many? {{ text }}", rank=2), folder)
    return folder


def test_evaluate_adapters_asks_everyone_with_the_adapters_template(tiny_base, tickets, monkeypatch):
    from training import adapter_evaluation
    from training.adapter_evaluation import evaluate_adapters
    from training.evaluation import EvaluationOptions

    asked = []
    answer = adapter_evaluation.FolderAnswers.answer
    monkeypatch.setattr(
        adapter_evaluation.FolderAnswers,
        "answer",
        lambda self, adapters, prompts: asked.append((adapters, prompts)) or answer(self, adapters, prompts),
    )
    result = evaluate_adapters(tiny_base, {"tickets": [tickets]}, cases(), EvaluationOptions(max_new_tokens=4))
    assert [system.name for system in result.systems] == ["base", "tickets", "lead-3"]
    # Fresh from PEFT a LoRA changes nothing, and both read the same prompts.
    assert result.systems[0].predictions == result.systems[1].predictions
    assert [prompts[0] for _, prompts in asked] == [f"How many? {DIALOGUE}"] * 2
    assert result.systems[1].beside_base["rouge1_best"].value == 0.0
    assert result.systems[2].predictions[0] == " ".join(DIALOGUE.split("\n")[:3])


def test_prompt_template_is_the_weight_adapters_then_the_prompts_then_the_bases(tmp_path, tiny_base, tickets):
    from adapters.manifest import AdapterKind, AdapterManifest
    from adapters.prompting import DEFAULT_TEMPLATE
    from training.adapter_evaluation import prompt_template
    from training.export import write_manifest

    soft, bare = tmp_path / "soft", tmp_path / "bare"
    soft.mkdir()
    bare.mkdir()
    write_manifest(AdapterManifest("soft", AdapterKind.PROMPT, prompt_template="Say: {{ text }}"), soft)
    assert prompt_template(tiny_base, [soft, tickets]) == "How many? {{ text }}"
    assert prompt_template(tiny_base, [bare, soft]) == "Say: {{ text }}"
    assert prompt_template(tiny_base, []) == "Sum up.\n\n{{ text }}"
    assert prompt_template(bare, []) == DEFAULT_TEMPLATE


def test_evaluate_adapters_of_no_cases_or_a_taken_name_is_refused(tiny_base, tickets):
    from training.adapter_evaluation import evaluate_adapters
    from training.errors import EvaluationError

    with pytest.raises(EvaluationError, match="no cases"):
        evaluate_adapters(tiny_base, {}, [])
    for taken in ("base", "lead-3"):
        with pytest.raises(EvaluationError, match="another name"):
            evaluate_adapters(tiny_base, {taken: [tickets]}, cases())
