"""Stores that many servers share: what each sees of the others, whatever breaks off in between."""

import itertools
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from adapters import store_remote
from adapters.errors import CorruptBlobError, StoreError
from adapters.store import AdapterStore
from adapters.store_remote import RemoteBlobs
from tests.fixtures.adapters import CONFIG, WEIGHTS, write_lora
from tests.fixtures.hub import Hub, running_hub
from tests.fixtures.s3 import S3Server, running_s3

NOBODY = frozenset[str]()


@dataclass
class Place:
    """A remote store, and servers of it."""

    url: str
    options: dict[str, object]
    local: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def server(self, max_local_bytes: int = 1 << 30) -> AdapterStore:
        local = self.local / f"server-{next(self.numbers)}"
        return AdapterStore(self.url, local, max_local_bytes=max_local_bytes, options=self.options)

    def filesystem(self) -> fsspec.AbstractFileSystem:
        filesystem: fsspec.AbstractFileSystem
        filesystem, _ = fsspec.core.url_to_fs(self.url, **self.options, skip_instance_cache=True)
        filesystem.invalidate_cache()
        return filesystem

    def files(self) -> list[str]:
        """What lies under the root, relative to it."""
        try:
            found = self.filesystem().find(self.url)
        except FileNotFoundError:
            return []
        return sorted(path.partition("adapters/")[2] for path in found)

    def write(self, path: str, data: bytes) -> None:
        self.filesystem().pipe_file(f"{self.url}/{path}", data)

    def remove(self, path: str) -> None:
        self.filesystem().rm_file(f"{self.url}/{path}")


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


@pytest.fixture
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of local copies that need not outlive the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _spoil(place: Place, digest: str) -> None:
    place.write(f"{digest}/{CONFIG}", b"{}")


# --- Every kind of store


def test_put_is_read_by_another_server(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    other = place.server()
    assert _contents(other.local_path(digest)) == _contents(adapter)
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
    assert _contents(place.server().local_path(kept)) == _contents(adapter)


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
    assert _contents(place.server().local_path(digest)) == _contents(adapter)


def test_corrupt_remote_blob_is_put_away_reported_and_healed_by_a_put(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    _spoil(place, digest)
    server = place.server()
    with pytest.raises(CorruptBlobError, match="upload the adapter again"):
        server.local_path(digest)
    assert {path.partition("/")[0] for path in place.files()} == {".quarantine"}
    assert len(place.files()) == 3
    with pytest.raises(StoreError, match="not in the store"):
        server.local_path(digest)
    assert server.put(adapter) == digest
    assert _contents(place.server().local_path(digest)) == _contents(adapter)


def test_corrupt_local_copy_is_put_away_and_fetched_again(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    server = place.server()
    path = server.local_path(digest)
    (path / CONFIG).write_text("{}")
    assert _contents(server.local_path(digest)) == _contents(adapter)
    assert [found.name[:64] for found in (path.parent / ".quarantine").iterdir()] == [digest]


def test_remote_blob_with_foreign_names_gives_the_adapters_files_only(place: Place, adapter: Path) -> None:
    digest = place.server().put(adapter)
    place.write(f"{digest}/surprise.sh", b"x")
    assert _contents(place.server().local_path(digest)) == _contents(adapter)


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


# --- Whatever breaks off: a fault at every call in turn


class Fault(OSError):
    """A connection that broke."""


class Faulty:
    """A file system whose call number ``at`` fails, before or after it took effect, and perhaps all from then on."""

    def __init__(self, inner: object, at: int, how: str, between: Callable[[], object] | None = None) -> None:
        self.inner, self.at, self.how, self.between = inner, at, how, between
        self.num_calls = 0

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)
        if name not in {"ls", "put_file", "pipe_file", "get_file", "cat_file", "cp_file", "rm_file", "modified"}:
            return method

        def call(*args: object, **kwargs: object) -> object:
            number = self.num_calls
            self.num_calls += 1
            if self.between is not None:
                if number == self.at:
                    self.between()
                return method(*args, **kwargs)
            if number == self.at and self.how == "answer lost":
                method(*args, **kwargs)
            if number == self.at or (number > self.at and self.how == "crash"):
                raise Fault("broken")
            return method(*args, **kwargs)

        return call

    @property
    def was_reached(self) -> bool:
        return self.num_calls > self.at


def _break(server: AdapterStore, at: int, how: str, between: Callable[[], object] | None = None) -> Faulty:
    remote = server._remote
    assert remote is not None
    faulty = Faulty(remote._filesystem(), at, how, between)
    remote._filesystem = lambda: faulty  # type: ignore[method-assign]
    return faulty


def _make_old(place: Place, digest: str) -> None:
    for path, file in place.filesystem().store.items():
        if digest in path:
            file.modified = datetime.now(UTC) - timedelta(days=1)


def _prepare(what: str, place: Place, adapter: Path) -> Callable[[AdapterStore], object]:
    """Bring a store where the case begins, and return the step that will break off."""
    if what == "put new":
        return lambda server: server.put(adapter)
    digest = place.server().put(adapter)
    _make_old(place, digest)
    if what in ("put half", "sweep half"):
        place.remove(f"{digest}/.complete")
    if what == "quarantine":
        _spoil(place, digest)
        return lambda server: server.local_path(digest)
    if what in ("sweep", "sweep half"):
        return lambda server: server.sweep(lambda: NOBODY, older_than_s=1000)
    return lambda server: server.put(adapter)


STEPS = ["put new", "put again", "put half", "sweep", "sweep half", "quarantine"]


@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("how", ["error", "answer lost", "crash"])
@pytest.mark.parametrize("what", STEPS)
def test_step_that_breaks_off_at_any_call_leaves_the_whole_blob_or_none(
    what: str, how: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound = _contents(adapter)
    for at in itertools.count():
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / str(at))
        step = _prepare(what, place, adapter)
        server = place.server()
        faulty = _break(server, at, how)
        with suppress(StoreError, CorruptBlobError):
            step(server)
        digest = _seen_by_another(place, sound, spoilt=what == "quarantine")
        # What a server that died has announced stands in nobody's way for ever.
        with monkeypatch.context() as patch:
            patch.setattr(store_remote, "_REMOVAL_DEAD_AFTER_S", 0.0)
            if digest is not None or what != "quarantine":
                assert _contents(place.server().local_path(place.server().put(adapter))) == sound
            place.server().sweep(lambda: NOBODY, older_than_s=-5)
            place.server().sweep(lambda: NOBODY, older_than_s=-5)
            assert [path for path in place.files() if not path.startswith(".quarantine/")] == []
        if not faulty.was_reached:
            break
    assert at >= 3


def _seen_by_another(place: Place, sound: dict[str, bytes], *, spoilt: bool) -> str | None:
    """Check that what another server sees is the whole blob or none; return its digest if it is whole."""
    digests = {path.partition("/")[0] for path in place.files()} - {".quarantine"}
    for digest in digests:
        try:
            assert _contents(place.server().local_path(digest)) == sound
        except CorruptBlobError:
            assert spoilt
        except StoreError:
            continue
        else:
            return digest
    return None


# --- Two servers at once: one does its whole work between any two calls of the other


@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("outer", ["put", "sweep", "quarantine"])
@pytest.mark.parametrize("inner", ["put", "sweep"])
def test_what_was_put_is_whole_whatever_another_server_does_between_any_two_calls(
    outer: str, inner: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound = _contents(adapter)
    for at in itertools.count():
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / str(at))
        step = _prepare({"put": "put again"}.get(outer, outer), place, adapter)
        digest = place.files()[0].partition("/")[0]
        one, other = place.server(), place.server()
        was_put: list[bool] = []

        def between(other: AdapterStore = other, was_put: list[bool] = was_put) -> None:
            if inner == "sweep":
                other.sweep(lambda: NOBODY, older_than_s=1000)
                return
            try:
                other.put(adapter)
            except StoreError:  # it would wait for the removal, and be told in the end to try again
                return
            was_put.append(True)

        faulty = _break(one, at, "", between)
        try:
            step(one)
        except (CorruptBlobError, StoreError):
            assert outer == "quarantine"
        if (outer == "put" or was_put) and outer != "quarantine":
            assert _contents(place.server().local_path(digest)) == sound
        if outer == "quarantine" and was_put:
            # Either the put came in time to see the spoilt blob go, or the next reader finds it.
            _seen_by_another(place, sound, spoilt=True)
            assert _contents(place.server().local_path(place.server().put(adapter))) == sound
        if not faulty.was_reached:
            break
    assert at >= 3


@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("what", ["put again", "put half"])
def test_what_was_put_is_whole_though_a_sweep_stands_still_between_any_two_calls(
    what: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "_REMOVAL_WAIT_S", 0.0)
    sound, num_put = _contents(adapter), 0
    for put_at, sweep_at in itertools.product(range(4), range(1, 12)):
        place = Place(f"memory://{uuid.uuid4().hex}/adapters", {}, tmp_path / f"{put_at}-{sweep_at}")
        put = _prepare(what, place, adapter)
        digest = place.files()[0].partition("/")[0]
        one, other = place.server(), place.server()
        standing_still, go_on = threading.Event(), threading.Event()

        def stand_still(standing_still: threading.Event = standing_still, go_on: threading.Event = go_on) -> None:
            standing_still.set()
            assert go_on.wait(10)

        def sweep(other: AdapterStore = other, standing_still: threading.Event = standing_still) -> None:
            other.sweep(lambda: NOBODY, older_than_s=1000)
            standing_still.set()

        thread = threading.Thread(target=sweep)

        def begin(thread: threading.Thread = thread, standing_still: threading.Event = standing_still) -> None:
            thread.start()
            assert standing_still.wait(10)

        _break(other, sweep_at, "", stand_still)
        _break(one, put_at, "", begin)
        was_put = False
        with suppress(StoreError):
            put(one)
            was_put = True
        go_on.set()
        if thread.ident is not None:
            thread.join()
        if was_put:
            num_put += 1
            assert _contents(place.server().local_path(digest)) == sound
    assert num_put > 10


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

    def fail_once(filesystem: object, digest: str, older_than_s: float) -> bool:
        if digest == digests[0]:
            raise Fault("broken")
        return sweep_blob(filesystem, digest, older_than_s)

    remote._sweep_blob = fail_once  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="Fault"):
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
    assert _contents(memory.server().local_path(digest)) == _contents(adapter)
    assert len(times) == 2
