"""Every hostile archive and source, against what unpacks and fetches: refused, and nothing written anywhere."""

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.archive import unpack_archive
from adapters.codec import inspect_adapter
from adapters.errors import AdapterError
from adapters.sources import fetch_source
from server.engine.fake import FAKE_BASE
from tests.fixtures.adapters import CONFIG, WEIGHTS
from tests.hostile.archive_cases import tar_of, zip_of
from tests.hostile.cases import LIMITS, lora_files
from tests.hostile.corpus import ARCHIVES, SOURCES

EVIL = Path("/tmp/medley-evil")
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOUND = {
    "zip": zip_of(list(lora_files().items())),
    "tar": tar_of(lora_files()),
    "tar.gz": tar_of(lora_files(), "w:gz"),
    "pax": tar_of({f"{'long' * 40}/{name}": data for name, data in lora_files().items()}),
}


def _admit(archive: bytes, folder: Path) -> Path:
    """Unpack and inspect, as the server does; returns where the files are."""
    (folder / "archive").write_bytes(archive)
    unpacked = folder / "unpacked"
    unpacked.mkdir(exist_ok=True)
    limits = LIMITS
    unpack_archive(
        folder / "archive", unpacked, max_file_bytes=limits.max_file_bytes, max_text_bytes=limits.max_text_bytes
    )
    inspect_adapter(unpacked, FAKE_BASE, LIMITS, "x")
    return unpacked


@pytest.mark.parametrize("title", ARCHIVES)
def test_hostile_archive_is_refused_with_its_own_error(tmp_path: Path, title: str) -> None:
    case = ARCHIVES[title]
    with pytest.raises(case.error) as caught, warnings.catch_warnings():
        _admit(case.make().archive, tmp_path)
    assert caught.type is case.error
    message = str(caught.value)
    assert case.message in message
    assert message.isprintable()
    assert len(message) < 500
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "unpacked"}
    assert {path.name for path in (tmp_path / "unpacked").iterdir()} <= {CONFIG, WEIGHTS}
    assert not EVIL.exists()


@pytest.mark.parametrize("title", SOURCES)
def test_hostile_source_is_not_fetched(tmp_path: Path, title: str) -> None:
    case = SOURCES[title]
    with pytest.raises(case.error) as caught:
        fetch_source(case.make().source, tmp_path, allowed=("hf://",), max_file_bytes=1, max_text_bytes=1)
    assert caught.type is case.error
    assert case.message in str(caught.value)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trick", ["a file that links out", "a folder that links out", "a pipe", "a folder beside"])
def test_source_of_files_that_leads_out_of_the_allowed_folder_is_refused(tmp_path: Path, trick: str) -> None:
    allowed, secret, into = tmp_path / "allowed", tmp_path / "secret", tmp_path / "into"
    for folder in (allowed / "good", secret, into, tmp_path / "allowed2"):
        folder.mkdir(parents=True)
    for folder in (allowed / "good", secret, tmp_path / "allowed2"):
        for name, data in lora_files().items():
            (folder / name).write_bytes(data)
    source = allowed / "good"
    if trick == "a file that links out":
        (source / "card.md").symlink_to("/etc/hostname")
    elif trick == "a folder that links out":
        source = allowed / "link"
        source.symlink_to(secret)
    elif trick == "a pipe":
        os.mkfifo(source / "card.md")
    else:
        source = tmp_path / "allowed2"
    with pytest.raises(AdapterError) as caught:
        fetch_source(
            f"file://{source}", into, allowed=(f"file://{allowed}/",), max_file_bytes=1 << 20, max_text_bytes=1 << 16
        )
    assert "root:" not in caught.value.message
    assert not list(into.iterdir())


@pytest.mark.parametrize("kind", SOUND)
def test_sound_archive_is_taken(tmp_path: Path, kind: str) -> None:
    assert {path.name for path in _admit(SOUND[kind], tmp_path).iterdir()} == {CONFIG, WEIGHTS}


@FUZZ
@given(data=st.data(), kind=st.sampled_from(sorted(SOUND)))
def test_archive_with_spoilt_bytes_is_unpacked_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    archive = bytearray(SOUND[kind])
    # Headers are where the sound archive has something to say; most of a tar is zeros.
    places = [at for at, byte in enumerate(archive) if byte] or [0]
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 22, 512]))
    try:
        unpacked = _admit(bytes(archive[: len(archive) - cut]) + data.draw(st.binary(max_size=4)), folder)
    except AdapterError:
        return
    assert {path.name for path in unpacked.iterdir()} <= {CONFIG, WEIGHTS, "card.md"}
