"""The shipped recipes keep the training pairs their cards' figures were measured with."""

import hashlib
import json
from pathlib import Path

import pytest

import training.config
from training.config import load_adapter_recipe
from training.data.examples import check_data, load_examples
from training.methods import METHODS

CONFIGS = Path(training.config.__file__).parent / "configs"
CORPORA = Path(__file__).parents[4].parent / "shared" / "data"
# Name: examples learned, chosen by and measured on, and the digest of all their texts.
PARTS = {
    "dialogsum": {"train": (11856, "f297d3eb89b1c76e"), "held_out": (94, "ebdabf0ebf88a7d6"),
                  "validation": (500, "b02057c7d8e7b7b4")},
    "dialogsum-topic": {"train": (11856, "e80f9f63a33c94a5"), "held_out": (349, "13292cf6952b3b41"),
                        "validation": (500, "9e95055642cdef99")},
    "tweetsumm": {"train": (762, "aa6badaef568ca58"), "held_out": (68, "6ec94d5b6c18c520"),
                  "validation": (110, "abe566dcfcb2b282")},
    "clinic-note": {"train": (1123, "a1ab0bf6ade87ec9"), "held_out": (67, "3644638b4c150bb0"),
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
    # Of 33 in the training split, one is among the held out that are not used.
    assert sum(leak.reason == "the same text" for leak in leaks) == 32
    assert _recipe("dialogsum-prompt").data == data
