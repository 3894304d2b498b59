"""The `datasets` library as a source: a saved data set, a folder of files, and a hub id that cannot be reached."""

import json

import pytest

from training.data.config import DataFile, DataSource
from training.data.hub import read_hub
from training.data.problems import ProblemLog
from training.data.rows import read_rows

ROWS = {"train": [{"text": "a", "references": ["b"]}], "validation": [{"text": "c", "references": ["d", "e"]}]}


@pytest.fixture(autouse=True)
def offline_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _rows(folder):
    log = ProblemLog()
    source = DataSource("s", "MIT", (DataFile("set"),), {"text": "text"})
    return read_rows(source, ("text", "references"), folder, log).rows, log.problems


def _check(rows, problems):
    assert not problems
    assert [(row.origin, row.split) for row in rows] == [
        ("set:train:1", "train"),
        ("set:validation:1", "validation"),
    ]
    assert rows[1].values == {"text": "c", "references": ("d", "e")}


def test_read_folder_saved_data_set_gives_rows_of_every_split(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({name: Dataset.from_list(rows) for name, rows in ROWS.items()}).save_to_disk(tmp_path / "set")
    _check(*_rows(tmp_path))


def test_read_folder_plain_files_are_told_apart_by_name(tmp_path):
    (tmp_path / "set").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / "set" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _check(*_rows(tmp_path))


def test_read_folder_without_data_is_noted(tmp_path):
    (tmp_path / "set").mkdir()
    rows, problems = _rows(tmp_path)
    assert not rows
    assert problems[0].kind == "unreadable data set"
    assert problems[0].examples[0].startswith("set: ")


def test_read_hub_id_out_of_reach_is_noted_with_advice():
    log = ProblemLog()
    assert not list(read_hub("hub:nobody/nothing#config", log))
    assert log.problems[0].kind == "unreadable data set"
    assert "cache" in log.problems[0].advice


def test_read_hub_id_and_config_reach_the_library(monkeypatch):
    import datasets

    asked = []

    def load(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS["train"])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    [record] = read_hub("hub:owner/name#three", ProblemLog())
    assert asked == [("owner/name", "three")]
    assert (record.origin, record.split) == ("hub:owner/name#three:test:1", "test")
