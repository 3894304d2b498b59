"""Bad data: each kind is counted, the first of each are shown, and none reaches training."""

import pytest

from training.data.config import DataConfig, DataFile, DataSource, SplitConfig
from training.data.examples import load_examples
from training.data.problems import ProblemLog
from training.data.rows import read_rows
from training.errors import TrainingDataError

SOURCE = DataSource("s", "MIT", (DataFile("rows.jsonl"),), {"text": "dialogue", "references": "summaries"})
FIELDS = ("text", "references")
GOOD = {"id": "1", "dialogue": "A talk.", "summaries": ["A sum.", "Another."], "topics": ["t"]}


def _problems(folder, source=SOURCE, fields=FIELDS):
    log = ProblemLog()
    rows = read_rows(source, fields, folder, log)
    return rows, {problem.kind: problem for problem in log.problems}


def test_read_rows_good_row_maps_columns_to_fields(write_rows):
    found, problems = _problems(write_rows([GOOD, {**GOOD, "id": "2", "summaries": "One."}]))
    assert not problems
    assert [row.values["references"] for row in found.rows] == [("A sum.", "Another."), ("One.",)]
    assert [(row.origin, row.split) for row in found.rows] == [("rows.jsonl:1", "train"), ("rows.jsonl:2", "train")]
    assert found.unused_columns == ("topics",)


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        ({"dialogue": "  \n"}, "empty row", "the column 'dialogue' is empty"),
        ({"summaries": []}, "empty row", "'summaries'"),
        ({"summaries": ["x", ""]}, "empty row", "'summaries'"),
        ({"dialogue": None}, "missing value", "null or NaN"),
        ({"dialogue": float("nan")}, "missing value", "null or NaN"),
        ({"summaries": ["x", None]}, "missing value", "'summaries'"),
        ({"dialogue": 7}, "wrong type", "holds int"),
        ({"dialogue": ["x"]}, "wrong type", "holds list"),
        ({"summaries": {"a": "b"}}, "wrong type", "holds dict"),
        ({"id": "1"}, "duplicate id", "id '1' is that of rows.jsonl:1, too"),
    ],
)
def test_read_rows_bad_cell_is_noted_with_file_and_line(write_rows, change, kind, detail):
    _, problems = _problems(write_rows([GOOD, {**GOOD, "id": "2", **change}]))
    assert list(problems) == [kind]
    assert problems[kind].examples[0].startswith("rows.jsonl:2: ")
    assert detail in problems[kind].examples[0]


def test_read_rows_wrong_columns_lists_those_there_are(write_rows):
    _, problems = _problems(write_rows([{"id": "1", "talk": "x", "summaries": "y"}]))
    assert (
        "no column 'dialogue' (for `text`); there are 'id', 'talk', 'summaries'"
        in (problems["missing column"].examples[0])
    )


def test_read_rows_many_defects_are_counted_and_three_shown(write_rows):
    _, problems = _problems(write_rows([{**GOOD, "id": str(n), "dialogue": ""} for n in range(10)]))
    assert problems["empty row"].count == 10
    assert len(problems["empty row"].examples) == 3


def test_read_rows_same_id_in_two_splits_is_no_defect(write_rows):
    _, problems = _problems(write_rows([{**GOOD, "split": "train"}, {**GOOD, "split": "validation"}]))
    assert not problems


def test_read_rows_split_of_the_file_is_that_of_rows_without_and_picks_among_the_others(write_rows):
    source = DataSource("s", "MIT", (DataFile("rows.jsonl", split="validation"),), SOURCE.columns)
    rows = [{**GOOD, "id": str(n), "split": split} for n, split in enumerate(("train", "validation", ""))]
    found, _ = _problems(write_rows(rows), source)
    assert [(row.origin, row.split) for row in found.rows] == [
        ("rows.jsonl:2", "validation"),
        ("rows.jsonl:3", "validation"),
    ]


def test_read_rows_without_columns_reads_prompt_completion_pairs(write_rows):
    source = DataSource("s", "MIT", (DataFile("rows.jsonl"),))
    found, problems = _problems(write_rows([{"prompt": "1 + 1 =", "completion": "2"}]), source)
    assert not problems
    assert found.rows[0].values == {"text": "1 + 1 =", "references": ("2",)}


def test_load_examples_bad_data_names_every_kind_before_any_training(write_rows):
    rows = [{**GOOD, "id": str(n), "dialogue": f"Talk {n}."} for n in range(40)]
    rows[3]["dialogue"], rows[5]["id"], rows[7]["summaries"] = "", "4", 1
    del rows[9]["dialogue"]
    config = DataConfig((SOURCE,), split=SplitConfig(validation_percent=20.0))
    with pytest.raises(TrainingDataError) as caught:
        load_examples(config, write_rows(rows))
    message = str(caught.value)
    assert "4 problems; nothing was trained" in message
    for kind, line in (("empty row", 4), ("duplicate id", 6), ("wrong type", 8), ("missing column", 10)):
        assert f"{kind} (1)" in message
        assert f"rows.jsonl:{line}: " in message
