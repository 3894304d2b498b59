"""Stores that many servers share: what each sees of the others."""

import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from adapters import store_remote
from adapters.errors import CorruptBlobError, StoreError
from adapters.store_remote import RemoteBlobs
from tests.fixtures.adapters import CONFIG, WEIGHTS, write_lora
from tests.fixtures.hub import Hub, running_hub
from tests.fixtures.remote_stores import NOBODY, Place, contents
from tests.fixtures.s3 import S3Server, running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def memory(tmp_path: Path) -> Place:
    return Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path)


@pytest.fixture(params=["memory", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3")
        return Place(f"{s3.new_bucket()}/adapters", s3.options, tmp_path)
    if request.param == "hub":
        hub: Hub = request.getfixturevalue("hub")
        repository = f"medley/{uuid.uuid4().hex}"
        hub.add(repository, ".gitattributes", b"")
        return Place(f"hf://{repository}/adapters", hub.options, tmp_path)
    place: Place = request.getfixturevalue("memory")
    return place


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = write_lora(tmp_path / "adapter")
    (folder / "card.md").write_text("# card")
    return folder


def test_put_is_read_by_another_server(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    other = place.server()
    assert contents(other.local_path(digest)) == contents(adapter)
    assert other.read_file(digest, "card.md") == b"# card"
    names = [".complete", CONFIG, WEIGHTS, "card.md"]
    assert place.files() == sorted(f"{digest}/{name}" for name in names)


def test_put_again_keeps_one_blob_and_renews_its_age(place: Place, adapter: Path) -> None:
    server = place.server()
    digest = server.put(adapter)
    filesystem, before = place.filesystem(), place.files()
    stamp = filesystem.cat_file(f"{place.url}/{digest}/.complete")
    assert place.server().put(adapter) == digest
    assert place.files() == before
    assert filesystem.cat_file(f"{place.url}/{digest}/.complete") != stamp


def test_sweep_removes_old_blobs_that_no_version_names(place: Place, adapter: Path, tmp_path: Path) -> None:
    kept = place.server().put(adapter)
    orphan = place.server().put(write_lora(tmp_path / "other", rank=2))
    server = place.server()
    server.local_path(orphan)
    assert server.sweep(lambda: NOBODY, older_than_s=3600) == ()
    assert server.sweep(lambda: frozenset({kept}), older_than_s=-5) == (orphan,)
    assert {path.partition("/")[0] for path in place.files()} == {kept}
    with pytest.raises(StoreError, match="not in the store"):
        server.local_path(orphan)
    assert contents(place.server().local_path(kept)) == contents(adapter)


def test_half_uploaded_blob_is_not_there_and_is_swept(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    place.remove(f"{digest}/.complete")
    server = place.server()
    with pytest.raises(StoreError, match="not in the store"):
        server.local_path(digest)
    assert server.sweep(lambda: NOBODY, older_than_s=3600) == ()
    assert server.sweep(lambda: NOBODY, older_than_s=-5) == (digest,)
    assert place.files() == []
    assert server.put(adapter) == digest
    assert contents(place.server().local_path(digest)) == contents(adapter)


def test_corrupt_remote_blob_is_put_away_reported_and_healed_by_a_put(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    place.spoil(digest)
    server = place.server()
    with pytest.raises(CorruptBlobError, match="upload the adapter again"):
        server.local_path(digest)
    assert {path.partition("/")[0] for path in place.files()} == {".quarantine"}
    assert len(place.files()) == 3
    with pytest.raises(StoreError, match="not in the store"):
        server.local_path(digest)
    assert server.put(adapter) == digest
    assert contents(place.server().local_path(digest)) == contents(adapter)


def test_corrupt_local_copy_is_put_away_and_fetched_again(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    server = place.server()
    path = server.local_path(digest)
    (path / CONFIG).write_text("{}")
    assert contents(server.local_path(digest)) == contents(adapter)
    assert [found.name[:64] for found in (path.parent / ".quarantine").iterdir()] == [digest]


def test_remote_blob_with_foreign_names_gives_the_adapters_files_only(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    place.write(f"{digest}/surprise.sh", b"x")
    assert contents(place.server().local_path(digest)) == contents(adapter)


def test_use_of_a_store_that_is_down_is_a_store_error_without_secrets(adapter: Path, tmp_path: Path) -> None:
    with running_s3() as server:
        place = Place(f"{server.new_bucket()}/adapters", {**server.options, "secret": "not to be told"}, tmp_path)
        store = place.server()
        digest = store.put(adapter)
    for use in (lambda: place.server().put(adapter), lambda: place.server().local_path(digest)):
        with pytest.raises(StoreError, match="is it up") as caught:
            use()
        assert "not to be told" not in str(caught.value)
    assert store.local_path(digest).is_dir()  # what is here goes on being served


def test_sweep_asks_what_is_live_after_it_has_listed(memory: Place, adapter: Path) -> None:
    server = memory.server()

    def live() -> frozenset[str]:
        return frozenset({memory.server().put(adapter)})

    assert server.sweep(live, older_than_s=-5) == ()
    assert len(memory.files()) == 4


def test_sweep_goes_on_after_a_blob_it_cannot_remove(memory: Place, adapter: Path, tmp_path: Path) -> None:
    digests = sorted([memory.server().put(adapter), memory.server().put(write_lora(tmp_path / "other", rank=2))])
    server = memory.server()
    remote = server._remote
    assert remote is not None
    sweep_blob = remote._sweep_blob

    def fail_once(filesystem: object, digest: str, *further: object) -> bool:
        if digest == digests[0]:
            raise OSError("broken")
        return sweep_blob(filesystem, digest, *further)

    remote._sweep_blob = fail_once  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="OSError"):
        server.sweep(lambda: NOBODY, older_than_s=-5)
    assert {path.partition("/")[0] for path in memory.files()} == {digests[0]}


def test_sweep_removes_what_is_in_quarantine_for_a_week(memory: Place) -> None:
    memory.write(".quarantine/old/file", b"x")
    memory.write(".quarantine/young/file", b"x")
    memory.filesystem().store[memory.url.removeprefix("memory:/") + "/.quarantine/old/file"].modified -= timedelta(
        days=8
    )
    memory.server().sweep(lambda: NOBODY, older_than_s=3600)
    assert memory.files() == [".quarantine/young/file"]


def test_put_waits_until_a_removal_is_over(memory: Place, adapter: Path) -> None:
    digest = memory.server().put(adapter)
    memory.write(f"{digest}/.removing-by-another", b"")
    timer = threading.Timer(0.3, memory.remove, (f"{digest}/.removing-by-another",))
    timer.start()
    assert memory.server().put(adapter) == digest
    assert not timer.is_alive()
    timer.join()


def test_put_gives_up_on_a_removal_that_does_not_end(
    memory: Place, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    digest = memory.server().put(adapter)
    memory.write(f"{digest}/.removing-by-another", b"")
    with pytest.raises(StoreError, match="being removed"):
        memory.server().put(adapter)


def test_fetch_spoilt_on_its_way_is_tried_once_more(
    memory: Place, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = memory.server().put(adapter)
    fetch, times = RemoteBlobs.fetch, []

    def spoil_first(self: RemoteBlobs, digest: str, into: Path) -> str:
        stamp = fetch(self, digest, into)
        if not times:
            (into / CONFIG).write_text("{}")
        times.append(1)
        return stamp

    monkeypatch.setattr(RemoteBlobs, "fetch", spoil_first)
    assert contents(memory.server().local_path(digest)) == contents(adapter)
    assert len(times) == 2
