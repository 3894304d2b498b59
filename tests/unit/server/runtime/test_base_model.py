from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from adapters.errors import AdapterError
from adapters.prompting import DEFAULT_TEMPLATE
from server.core.errors import FailedPreconditionError
from server.runtime.base_model import read_base_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_base_text_of_a_folder_has_its_tokenizer_and_template(folder: Path) -> None:
    (folder / "medley.json").write_text('{"model_id": "m", "prompt_template": "T {{ text }}"}')
    base = read_base_text(str(folder))
    assert base.tokenizer.encode("a") == [0]
    assert base.prompt_template == "T {{ text }}"


def test_base_text_without_a_card_has_the_default_template(folder: Path) -> None:
    assert read_base_text(str(folder)).prompt_template == DEFAULT_TEMPLATE


def test_base_text_with_a_bad_template_is_refused(folder: Path) -> None:
    (folder / "medley.json").write_text('{"model_id": "m", "prompt_template": "{{ other }}"}')
    with pytest.raises(AdapterError):
        read_base_text(str(folder))


def test_base_text_of_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"tokenizer\.json"):
        read_base_text(str(tmp_path))


def test_base_text_of_no_model_is_the_toy() -> None:
    assert read_base_text("").tokenizer.encode("a") == [100, 1]
