"""The words near a soft prompt's rows: an untrained prompt made of words is those words."""

from types import SimpleNamespace

import numpy as np
import pytest

from training.errors import TrainingConfigError
from training.studies.config import NeighboursConfig, StudyPlaces

pytestmark = pytest.mark.torch
TEXT = "book a table"


@pytest.fixture
def untrained_prompt(tmp_path, tiny_base):
    """A PEFT folder whose rows are the embeddings of `TEXT`, as training starts from them."""
    from training.base_model import load_base
    from training.methods import PromptMethod
    from training.recipes.prompt import prepare_prompt

    tokenizer = load_base(str(tiny_base)).tokenizer
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    method = PromptMethod(num_virtual_tokens=len(ids) + 2, init_text=TEXT)
    prepared = prepare_prompt(SimpleNamespace(base=str(tiny_base), method=method))
    prepared.form.save(prepared.model, tmp_path / "untrained")
    return tmp_path / "untrained", ids, tokenizer


def test_untrained_text_prompt_returns_its_own_tokens(tmp_path, tiny_base, untrained_prompt):
    from training.studies.neighbours import run, virtual_tokens

    folder, ids, tokenizer = untrained_prompt
    config = NeighboursConfig(str(folder), str(tiny_base), init_text=TEXT)
    report = run(config, StudyPlaces(tmp_path, tmp_path / "out")).read_text()
    assert f"{len(ids) + 2} of {len(ids) + 2} virtual tokens stand on a word" in report
    from safetensors.torch import load_file

    rows = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].float().numpy()[: len(ids) + 2]
    tokens = virtual_tokens(rows, tiny_base, config)
    assert [token.words[0] for token in tokens] == [tokenizer.decode([i]) for i in (*ids, *ids[:2])]
    assert all(token.cosines[0] == pytest.approx(1.0, abs=1e-3) for token in tokens)
    assert all(token.start == pytest.approx(1.0, abs=1e-3) for token in tokens)
    assert (tmp_path / "out" / "neighbours.png").stat().st_size > 1000


def test_nearest_is_by_angle_not_by_length():
    from training.studies.neighbours import nearest

    table = np.array([[1, 0], [0, 1], [-1, 0], [100, 100]], dtype=np.float32)
    ids, cosines = nearest(np.array([[5, 0.1], [0.1, 0.2]], dtype=np.float32), table, 2)
    assert ids.tolist() == [[0, 3], [3, 1]]
    assert cosines[0, 0] == pytest.approx(5 / np.hypot(5, 0.1))
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_neighbours_of_the_shipped_prompt_are_real_words(tmp_path):
    from training.studies.neighbours import run

    report = run(NeighboursConfig(), StudyPlaces(tmp_path, tmp_path / "out")).read_text()
    assert "still lie nearer to the word they began as" not in report
    assert "| 59 |" in report
    assert "| 60 |" not in report


def test_neighbours_of_a_lora_are_refused(tmp_path):
    from training.studies.neighbours import run

    config = NeighboursConfig("adapters/library/dialogsum")
    with pytest.raises(TrainingConfigError, match="not a soft prompt"):
        run(config, StudyPlaces(tmp_path, tmp_path / "out"))
