"""A planted leak is flagged with both origins; what merely resembles is not."""

import csv
import json

import pytest

from training.data.config import DataConfig, DataFile, DataSource, SplitConfig
from training.data.contamination import ContaminationIndex, Document
from training.data.examples import check_data, load_examples
from training.errors import TrainingConfigError, TrainingDataError

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"
SHARES = SplitConfig(held_out_percent=10.0)


def _leaks(train, measured):
    index = ContaminationIndex([Document(f"eval:{n}", parts) for n, parts in enumerate(measured)])
    leaks = index.leaks([Document(f"train:{n}", parts) for n, parts in enumerate(train)])
    return [(leak.train_origin, leak.evaluation_origin, leak.reason.split(":")[0]) for leak in leaks]


def test_leaks_same_text_in_another_dress_is_flagged_with_both_origins():
    assert _leaks([("Hello, World",), ("other",)], [("x",), ("  hello,\nWORLD ",)]) == [
        ("train:0", "eval:1", "the same text")
    ]


def test_leaks_thirteen_words_in_common_are_flagged_and_twelve_are_not():
    words = f"Before: {RUN.upper().replace(' ', ', ')}! After."
    assert _leaks([(words,)], [("intro", f"so {RUN}")]) == [("train:0", "eval:0", "13 words in common")]
    assert _leaks([(f"a {RUN.removesuffix(' thirteen')} b",)], [(f"x {RUN}",)]) == []


def test_leaks_set_phrase_of_more_than_ten_examples_is_no_leak():
    train = [(f"{RUN} {'abcdefghijkl'[n]}",) for n in range(11)]
    assert _leaks(train, [(f"z {RUN}",)]) == []
    assert len(_leaks(train[:10], [(f"z {RUN}",)])) == 10


def test_leaks_source_of_two_fields_needs_both_in_one_record():
    assert _leaks([("premise", "claim")], [("premise", "else"), ("claim",)]) == []
    assert _leaks([("premise", "claim")], [("claim", "label", "Premise")]) == [("train:0", "eval:0", "the same text")]


def test_leaks_record_does_not_give_itself_away():
    document = Document("same:1", (RUN, "x"))
    assert ContaminationIndex([document]).leaks([document]) == []
    assert ContaminationIndex([]).leaks([document]) == []


def _planted(folder, **keys):
    """Sixty texts to learn from, four to validate on, and an evaluation file that holds the fifth of the former."""
    rows = [
        {"text": f"Text number {n}.", "answer": "x", "split": "train" if n < 60 else "validation"} for n in range(64)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "bench.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["question", "gold"], ["What?", "x"], ["TEXT number  4.", "x"]])
    source = DataSource("s", "MIT", (DataFile("rows.jsonl"),), {"text": "text", "references": "answer"})
    return DataConfig((source,), SHARES, evaluation_files=("bench.csv",), **keys)


def test_load_examples_planted_leak_is_an_error_with_both_origins(tmp_path):
    with pytest.raises(
        TrainingDataError, match=r"(?s)contamination \(1\).*rows.jsonl:5: the same text, as bench.csv:3"
    ):
        load_examples(_planted(tmp_path), tmp_path)


def test_load_examples_planted_leak_may_be_dropped_or_allowed(tmp_path):
    allowed = load_examples(_planted(tmp_path, on_contamination="allow"), tmp_path)
    dropped = load_examples(_planted(tmp_path, on_contamination="drop"), tmp_path)
    before, after = ({case.origin for case in (*s.train, *s.held_out)} for s in (allowed, dropped))
    assert before - after == {"rows.jsonl:5"}
    assert dropped.report.sources[0].num_dropped == 1
    assert [leak.train_origin for leak in check_data(_planted(tmp_path, on_contamination="allow"), tmp_path).leaks] == [
        "rows.jsonl:5"
    ]


def test_load_examples_training_text_in_the_validation_split_is_a_leak(tmp_path):
    config = _planted(tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "text number 61.", "answer": "y", "split": "train"}) + "\n")
    with pytest.raises(TrainingDataError, match=r"rows.jsonl:65: the same text, as rows.jsonl:62"):
        load_examples(config, tmp_path)


def test_load_examples_training_records_of_an_evaluation_file_are_not_measured_on(tmp_path):
    config = _planted(tmp_path)
    config = DataConfig(config.sources, SHARES, evaluation_files=("rows.jsonl",))
    assert load_examples(config, tmp_path).train


def test_load_examples_unknown_policy_is_refused(tmp_path):
    with pytest.raises(TrainingConfigError, match="on_contamination is one of error, drop, allow"):
        load_examples(_planted(tmp_path, on_contamination="ignore"), tmp_path)
