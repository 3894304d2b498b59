"""Every hostile folder, name and file name, against the codec itself: one clear error each, and nothing left behind."""

import warnings
from pathlib import Path

import pytest

from adapters.adapter_folder import check_file_name
from adapters.codec import inspect_adapter, read_adapter
from adapters.manifest import check_name
from adapters.prompting import check_template
from server.engine.fake import FAKE_BASE
from tests.hostile.cases import LIMITS, Case, Upload, lora_files
from tests.hostile.corpus import CORPUS, FOLDERS, NAMES, write

# Tags and the base's own name are the server's to check.
ADMITTED = [title for title in (*FOLDERS, *NAMES) if not title.startswith(("tag", "name-of-the-base"))]
# Templates and what medley.json says of itself are checked before an adapter is ready, once.
READ = [title for title in FOLDERS if not title.startswith(("template", "manifest"))]


def _admit(upload: Upload, folder: Path) -> None:
    """What the server asks of an upload, in its order, up to the engine's run."""
    check_name(upload.name)
    if upload.alias:
        check_name(upload.alias)
    for name in upload.files:
        check_file_name(name)
    folder.mkdir()
    for name, data in upload.files.items():
        (folder / name).write_bytes(data)
    manifest = inspect_adapter(folder, FAKE_BASE, LIMITS, upload.name)
    if manifest.prompt_template:
        check_template(manifest.prompt_template)


@pytest.mark.parametrize("title", ADMITTED)
def test_hostile_folder_is_refused_with_its_own_error(tmp_path: Path, title: str) -> None:
    case = CORPUS[title]
    with pytest.raises(case.error) as caught, warnings.catch_warnings():
        _admit(case.make(), tmp_path / "upload")
    assert caught.type is case.error
    message = str(caught.value)
    assert case.message in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500
    assert {path.name for path in tmp_path.iterdir()} <= {"upload"}


@pytest.mark.parametrize("title", READ)
def test_hostile_folder_is_read_by_nobody(tmp_path: Path, title: str) -> None:
    """Reading checks again what inspecting checked: the engine never trusts that somebody else did."""
    upload = FOLDERS[title].make()
    for name, data in upload.files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FOLDERS[title].error):
        read_adapter(tmp_path, FAKE_BASE, LIMITS)


def test_sound_upload_is_taken(tmp_path: Path) -> None:
    _admit(Upload(lora_files(), name="sound", alias="stable"), tmp_path / "upload")


def test_corpus_is_written_for_people(tmp_path: Path) -> None:
    for title, case in CORPUS.items():
        write(case, tmp_path / title)
    assert len(list(tmp_path.glob("*/case.json"))) == len(CORPUS) > 150
    assert not list(tmp_path.glob("*/.*"))


def test_titles_and_messages_tell_cases_apart() -> None:
    assert all(title.replace("-", "").replace(".", "").replace("_", "").isalnum() for title in CORPUS)
    assert all(isinstance(case, Case) for case in CORPUS.values())
