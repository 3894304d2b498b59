"""From the `data` section of a recipe to cases, with its report."""

import json

import pytest

from adapters.errors import PromptTemplateError
from training.data.config import (
    DataConfig,
    DataFile,
    DataSource,
    InstructionConfig,
    MixtureConfig,
    SplitConfig,
)
from training.data.examples import check_data, load_examples
from training.errors import TrainingConfigError, TrainingDataError

SPLIT = SplitConfig(held_out_percent=20.0)
REVIEWS = DataSource("reviews", "CC-BY-4.0", (DataFile("reviews.jsonl"),), {}, ("sentiment",))
SUMS = DataSource("sums", "MIT", (DataFile("sums.jsonl"),), {"rationale": "why"}, ("reasoning",))


@pytest.fixture
def folder(write_rows):
    """Forty reviews and twenty sums; the last four of each are to be validated on."""
    write_rows(
        [
            {"text": f"Film {n} is {'good' if n % 2 else 'bad'}.", "label": ["negative", "positive"][n % 2], "stars": n}
            | {"split": "train" if n < 36 else "validation"}
            for n in range(40)
        ],
        "reviews.jsonl",
    )
    return write_rows(
        [
            {"question": f"{n} + 1?", "why": f"One more than {n} is {n + 1}.", "answer": f"{n + 1}"}
            | {"split": "train" if n < 16 else "validation"}
            for n in range(20)
        ],
        "sums.jsonl",
    )


def _words(texts):
    """A tokenizer that takes a word for a token, and has an end token."""
    return {"input_ids": [[*range(len(text.split())), 0] for text in texts]}


def test_load_examples_case_knows_source_prompt_origin_and_task(folder):
    splits = load_examples(DataConfig((REVIEWS,), SPLIT), folder, prompt_template="> {{ text }}")
    case = splits.validation[0]
    assert case.source == "Film 36 is bad."
    assert case.prompt == "> Film 36 is bad.\n\nIs this review positive or negative?"
    assert (case.references, case.choices) == (("negative",), ("negative", "positive"))
    assert (case.origin, case.task) == ("reviews.jsonl:37", "reviews")


def test_load_examples_bad_prompt_template_is_refused(folder):
    with pytest.raises(PromptTemplateError):
        load_examples(DataConfig((REVIEWS,), SPLIT), folder, prompt_template="{{ label }}")


def test_load_examples_with_options_lists_them_and_without_does_not(folder):
    config = DataConfig((REVIEWS,), SPLIT, InstructionConfig(with_options=True))
    assert all(case.prompt.endswith("OPTIONS:\n- negative\n- positive") for case in load_examples(config, folder).train)
    plain = load_examples(DataConfig((REVIEWS,), SPLIT), folder)
    assert not any("OPTIONS" in case.prompt for case in plain.train)


@pytest.mark.parametrize("num_shots", [1, 3])
def test_load_examples_few_shot_draws_seeded_exemplars_from_the_training_part_only(folder, num_shots):
    config = DataConfig((REVIEWS,), SPLIT, InstructionConfig(num_shots=num_shots))
    zero, few, again = (load_examples(c, folder) for c in (DataConfig((REVIEWS,), SPLIT), config, config))
    assert few == again
    learned = {case.prompt: case for case in zero.train}
    for plain, case in zip(
        [*zero.train, *zero.held_out, *zero.validation], [*few.train, *few.held_out, *few.validation], strict=True
    ):
        head = case.prompt.removesuffix(plain.prompt)
        shots = [shot for shot in learned if f"{shot}\n{learned[shot].references[0]}\n\n" in head]
        assert len(shots) == num_shots
        assert plain.prompt not in shots


def test_load_examples_too_few_texts_for_the_shots_is_a_problem(folder):
    config = DataConfig((SUMS,), SPLIT, InstructionConfig(num_shots=30))
    with pytest.raises(TrainingDataError, match="30 shots need more"):
        load_examples(config, folder)


def test_load_examples_chain_of_thought_learns_the_rationale_and_measures_the_answer(folder):
    splits = load_examples(DataConfig((SUMS,), SPLIT, InstructionConfig(chain_of_thought=True)), folder)
    case = splits.train[0]
    number = int(case.source.split()[0])
    assert case.references == (f"One more than {number} is {number + 1}. So the answer is {number + 1}.",)
    assert case.prompt.endswith("?\n\nGive the reasoning before the answer.")
    assert splits.validation[0].references == ("17",)


@pytest.mark.parametrize(
    "instruction", [InstructionConfig(chain_of_thought=True), InstructionConfig(with_options=True)]
)
def test_load_examples_template_without_what_is_asked_for_is_a_problem(folder, instruction):
    wrong = REVIEWS if instruction.chain_of_thought else SUMS
    with pytest.raises(TrainingDataError, match=r"which data\.instruction asks for"):
        load_examples(DataConfig((wrong,), SPLIT, instruction), folder)


def test_load_examples_row_without_the_options_asked_for_is_a_problem(write_rows):
    folder = write_rows([{"question": "Which?", "choices": [], "answer": "x"}])
    source = DataSource("q", "MIT", (DataFile("rows.jsonl"),), {}, ("multiple-choice",))
    with pytest.raises(TrainingDataError, match=r"rows.jsonl:1: template 'multiple-choice' has no answers"):
        load_examples(DataConfig((source,), SPLIT, InstructionConfig(with_options=True)), folder)


def test_load_examples_template_that_misses_a_field_is_an_error_with_file_and_line(folder):
    source = DataSource("reviews", "MIT", REVIEWS.files, {}, ("entailment",))
    with pytest.raises(TrainingDataError, match=r"reviews.jsonl:1: no column 'hypothesis' \(for `hypothesis`\)"):
        load_examples(DataConfig((source,), SPLIT), folder)


def test_load_examples_template_that_fails_on_a_row_is_an_error_with_file_and_line(folder):
    source = DataSource("reviews", "MIT", REVIEWS.files, {}, ("{{ text.missing }} ||| x",))
    with pytest.raises(TrainingDataError, match=r"(?s)template \(40\).*reviews.jsonl:1: .*fails here"):
        load_examples(DataConfig((source,), SPLIT), folder)


def test_check_data_columns_no_template_uses_are_a_warning(folder):
    report = check_data(DataConfig((REVIEWS,), SPLIT), folder)
    assert report.is_sound
    assert report.warnings == ("source 'reviews': no template uses the columns stars",)


def test_load_examples_several_templates_share_the_training_part(folder):
    source = DataSource("reviews", "MIT", REVIEWS.files, {"references": "label"}, ("sentiment", "Say: {{ text }}"))
    splits = load_examples(DataConfig((source,), SPLIT), folder)
    said = [case.prompt.startswith("Say: ") for case in splits.train]
    assert 0.2 < sum(said) / len(said) < 0.8
    assert not any(case.prompt.startswith("Say: ") for case in (*splits.held_out, *splits.validation))


def test_load_examples_two_sources_report_rates_counts_tokens_and_licences(folder):
    config = DataConfig((REVIEWS, SUMS), SPLIT, mixture=MixtureConfig(cap=20))
    report = load_examples(config, folder, _words).report
    reviews, sums = report.sources
    assert reviews.num_train + reviews.num_held_out == 36
    assert sums.num_train + sums.num_held_out == 16
    assert reviews.rate == pytest.approx(20 / (20 + sums.num_train)) == reviews.realised_rate
    assert report.num_epoch_examples == 20 + sums.num_train
    assert sums.num_tokens == sums.num_train * (3 + 1 + 1 + 1)
    assert report.licences == ("CC-BY-4.0", "MIT")
    assert "| sums | MIT |" in report.to_markdown()
    assert json.loads(report.to_json())["sources"][1]["num_train"] == sums.num_train


@pytest.mark.parametrize(("policy", "kept"), [("cut", 1), ("drop", 0)])
def test_load_examples_over_long_example_is_cut_or_dropped_and_counted(folder, policy, kept):
    _lengthen(folder)
    splits = load_examples(DataConfig((SUMS,), SPLIT, on_over_long=policy), folder, _words)
    [source] = splits.report.sources
    assert sum(len(case.prompt) > 500 for case in splits.train) == kept
    assert (source.num_cut, source.num_dropped) == (kept, 1 - kept)


def test_load_examples_over_long_example_may_be_an_error_with_file_and_line(folder):
    line = _lengthen(folder)
    with pytest.raises(TrainingDataError, match=f"sums.jsonl:{line}: 603 tokens of prompt, 2 of answer"):
        load_examples(DataConfig((SUMS,), SPLIT, on_over_long="error"), folder, _words)


def test_check_data_reports_every_problem_without_raising(folder):
    path = folder / "sums.jsonl"
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": ""') + "{")
    report = check_data(DataConfig((REVIEWS, SUMS), SPLIT), folder)
    assert not report.is_sound
    assert {problem.kind for problem in report.problems} == {"malformed JSON", "empty row"}
    assert "sums.jsonl:21" in report.to_markdown()
    assert json.loads(report.to_json())["is_sound"] is False


def test_check_data_without_any_readable_file_has_no_mixture(tmp_path):
    report = check_data(DataConfig((REVIEWS,), SPLIT), tmp_path)
    assert report.mixture is None
    assert "missing file" in report.to_markdown()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DataConfig(()), "at least one source"),
        (DataConfig((REVIEWS, REVIEWS)), "a name of its own"),
        (DataConfig((DataSource("x", " ", REVIEWS.files),)), "licence"),
        (DataConfig((DataSource("x", "MIT", ()),)), "files"),
        (DataConfig((REVIEWS,), on_over_long="shrink"), "on_over_long is one of"),
        (DataConfig((DataSource("x", "MIT", REVIEWS.files, {"txt": "text"}, ("sentiment",)),)), "the field 'txt'"),
    ],
)
def test_load_examples_meaningless_config_is_refused(folder, config, reason):
    with pytest.raises(TrainingConfigError, match=reason):
        load_examples(config, folder)


def _lengthen(folder):
    """Make one question of the training part 600 words longer, and return its line."""
    path = folder / "sums.jsonl"
    origin = load_examples(DataConfig((SUMS,), SPLIT), folder).train[0].origin
    line = int(origin.rpartition(":")[2])
    rows = path.read_text().splitlines(keepends=True)
    # The key of the split changes with the text; the same hash part is found by trying endings.
    for ending in range(100):
        rows[line - 1] = json.dumps({"question": f"{'very ' * 600}long {ending}", "why": "x", "answer": "y"}) + "\n"
        path.write_text("".join(rows))
        if any(case.origin == origin for case in load_examples(DataConfig((SUMS,), SPLIT), folder).train):
            return line
    raise AssertionError
