import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from adapters.errors import AdapterError
from adapters.prompting import DEFAULT_TEMPLATE
from server.core.errors import FailedPreconditionError
from server.core.request import Conversation, Message
from server.runtime.base_model import read_base_text

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write_config(folder: Path, **fields: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def rendered(folder: Path) -> str:
    template = read_base_text(str(folder)).chat_template
    assert template is not None
    return template.render(Conversation((Message("user", "hi"),)), max_chars=100)


def test_base_text_of_a_folder_has_its_tokenizer_and_template(folder: Path) -> None:
    (folder / "medley.json").write_text('{"model_id": "m", "prompt_template": "T {{ text }}"}')
    base = read_base_text(str(folder))
    assert base.tokenizer.encode("a") == [0]
    assert base.prompt_template == "T {{ text }}"


def test_base_text_without_a_card_has_the_default_template(folder: Path) -> None:
    base = read_base_text(str(folder))
    assert (base.prompt_template, base.chat_template) == (DEFAULT_TEMPLATE, None)


def test_base_text_with_a_bad_template_is_refused(folder: Path) -> None:
    (folder / "medley.json").write_text('{"model_id": "m", "prompt_template": "{{ other }}"}')
    with pytest.raises(AdapterError):
        read_base_text(str(folder))


def test_base_text_of_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"no tokenizer\.json.*save_pretrained"):
        read_base_text(str(tmp_path))


def test_base_text_of_no_model_is_the_toy() -> None:
    assert read_base_text("").tokenizer.encode("a") == [100, 1]


def test_base_text_of_a_model_that_is_nowhere_says_so() -> None:
    with pytest.raises(
        FailedPreconditionError, match=r"\./nowhere/at/all' is no folder here, and it is no hub id either"
    ):
        read_base_text("./nowhere/at/all")


@pytest.mark.parametrize(
    "chat_template",
    [TEMPLATE, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]],
)
def test_chat_template_in_the_tokenizers_configuration_is_found(folder: Path, chat_template: object) -> None:
    write_config(
        folder,
        chat_template=chat_template,
        bos_token={"content": "<s>", "special": True},
        eos_token="</s>",
        add_bos_token=True,
    )
    assert rendered(folder) == "<s>user: hi</s>"


def test_chat_template_file_goes_before_the_configuration(folder: Path) -> None:
    write_config(folder, chat_template="x")
    (folder / "chat_template.jinja").write_text("from a file: {{ messages[0].content }}")
    assert rendered(folder) == "from a file: hi"


def test_special_tokens_of_the_older_file_are_found(folder: Path) -> None:
    write_config(folder, chat_template=TEMPLATE)
    (folder / "special_tokens_map.json").write_text('{"bos_token": "[", "eos_token": {"content": "]"}}')
    assert rendered(folder) == "[user: hi]"
    write_config(folder, chat_template=TEMPLATE, bos_token="(", eos_token=")", added_tokens_decoder={})
    assert rendered(folder) == "(user: hi)"


@pytest.mark.parametrize("chat_template", [7, {"default": "x"}, ["x"], [{"name": "default"}], "{% if %}"])
def test_chat_template_that_is_none_is_refused(folder: Path, chat_template: object) -> None:
    write_config(folder, chat_template=chat_template)
    with pytest.raises(FailedPreconditionError, match=r"chat[ _]template"):
        read_base_text(str(folder))


def test_chat_templates_for_other_uses_only_are_no_chat_template(folder: Path) -> None:
    write_config(folder, chat_template=[{"name": "rag", "template": "x"}])
    assert read_base_text(str(folder)).chat_template is None


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_files_that_cannot_be_read_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff")
    with pytest.raises(FailedPreconditionError, match=name):
        read_base_text(str(folder))
