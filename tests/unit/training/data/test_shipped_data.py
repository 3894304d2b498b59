"""The shipped recipes keep the training pairs their cards' figures were measured with."""

import hashlib
import json
from pathlib import Path

import pytest

import training.config
from training.config import load_adapter_recipe
from training.data.config import DataConfig, DataFile, DataSource, SplitConfig
from training.data.examples import check_data, load_examples
from training.methods import METHODS

CONFIGS = Path(training.config.__file__).parent / "configs"
CORPORA = Path(__file__).parents[4].parent / "shared" / "data"
# Name: examples learned, chosen by and measured on, and the digest of all their texts before sources had a config.
PARTS = {
    "dialogsum": {"train": (12068, "819c60cbb6d15b3f"), "held_out": (96, "ca5397a585b76da1"),
                  "validation": (500, "b02057c7d8e7b7b4")},
    "dialogsum-topic": {"train": (12068, "b43d8395082b1d68"), "held_out": (360, "c38399f910b769e0"),
                        "validation": (500, "9e95055642cdef99")},
    "tweetsumm": {"train": (801, "cf5549fc70af52dc"), "held_out": (78, "256b3812449617bc"),
                  "validation": (110, "abe566dcfcb2b282")},
    "clinic-note": {"train": (1144, "109174a3b928f714"), "held_out": (57, "39e7e2c7e77cd349"),
                    "validation": (100, "e04cd65498b946ba")},
}  # fmt: skip


def _recipe(name):
    method = "prompt" if name.endswith("prompt") else "lora"
    return load_adapter_recipe(method, METHODS, CONFIGS / f"{name}.yaml")


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the repository")
@pytest.mark.parametrize("name", sorted(PARTS))
def test_load_examples_shipped_recipe_gives_the_pairs_it_was_trained_on(name):
    recipe = _recipe(name)
    splits = load_examples(recipe.data, CORPORA, prompt_template=recipe.adapter.prompt_template)
    for part, expected in PARTS[name].items():
        cases = getattr(splits, part)
        texts = json.dumps([[case.source, case.prompt, list(case.references)] for case in cases])
        assert (len(cases), hashlib.sha256(texts.encode()).hexdigest()[:16]) == expected


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the repository")
def test_check_data_dialogsum_reports_the_validation_dialogues_that_are_learned():
    data = _recipe("dialogsum").data
    leaks = check_data(data, CORPORA).leaks
    # Of 33 in the training split, 3 are among the held out that are not used.
    assert sum(leak.reason == "the same text" for leak in leaks) == 30
    assert _recipe("dialogsum-prompt").data == data


def test_load_examples_exact_match_splits_as_the_adapters_that_ship_were_split(write_rows):
    rows = [
        {"text": f"Talk {n % 250}" if n % 2 else f"TALK {n % 250}", "answer": f"a{n}"}
        | {"split": "train" if n < 280 else "validation"}
        for n in range(300)
    ]
    source = DataSource("s", "MIT", (DataFile("rows.jsonl"),), {"text": "text", "references": "answer"})
    split = SplitConfig("salt", held_out_percent=20.0, num_held_out=10, match="exact")
    splits = load_examples(DataConfig((source,), split, on_contamination="allow"), write_rows(rows))

    def is_chosen(text):
        return int.from_bytes(hashlib.sha256(f"salt:{text}".encode()).digest()[:8], "big") / 2**64 < 0.2

    learned = [row["answer"] for row in rows[:280] if not is_chosen(row["text"])]
    chosen = [row["answer"] for row in rows[:280] if is_chosen(row["text"])]
    assert [case.references[0] for case in splits.train] == learned
    assert [case.references[0] for case in splits.held_out] == chosen[:10]
    assert [case.references[0] for case in splits.validation] == [row["answer"] for row in rows[280:]]
