"""Local copies of a shared store: kept while in use, given up when there are too many, fetched again when needed."""

import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import store_cache
from adapters.errors import AdapterNotFoundError, CorruptBlobError, StoreError
from adapters.store import AdapterStore
from adapters.store_remote import RemoteBlobs
from tests.fixtures.adapters import CONFIG, WEIGHTS, write_lora


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/adapters"


@pytest.fixture
def digests(url: str, tmp_path: Path) -> list[str]:
    """Three blobs of one size, put by another server."""
    other = AdapterStore(url, tmp_path / "other")
    return [other.put(write_lora(tmp_path / f"adapter-{seed}", seed=seed)) for seed in range(3)]


@pytest.fixture
def size_bytes(digests: list[str], tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "other" / digests[0]).iterdir())


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "local"


@pytest.fixture
def store(url: str, local: Path, size_bytes: int) -> AdapterStore:
    """Room for two of the three."""
    return AdapterStore(url, local, max_local_bytes=2 * size_bytes + 10)


def _here(local: Path) -> set[str]:
    return {path.name for path in local.iterdir() if not path.name.startswith(".")}


def test_fetch_over_the_limit_evicts_the_least_recently_used(
    store: AdapterStore, digests: list[str], local: Path
) -> None:
    one, two, three = digests
    for digest in (one, two, one, three):
        store.local_path(digest)
    assert _here(local) == {one, three}
    assert store.verified_path(two) is None
    assert store.local_path(two).is_dir()
    assert _here(local) == {three, two}


def test_put_over_the_limit_evicts_too(store: AdapterStore, digests: list[str], local: Path, tmp_path: Path) -> None:
    for digest in digests[:2]:
        store.local_path(digest)
    new = store.put(write_lora(tmp_path / "new", seed=9))
    assert _here(local) == {digests[1], new}


def test_pinned_copy_is_never_evicted_even_over_the_limit(store: AdapterStore, digests: list[str], local: Path) -> None:
    for digest in digests:
        store.pin(digest)
        store.local_path(digest)
    assert _here(local) == set(digests)
    store.pin(digests[0])
    for digest in digests:
        store.unpin(digest)
    store.local_path(digests[2])
    store.sweep(lambda: frozenset(digests), older_than_s=-5)
    assert _here(local) == set(digests)  # nothing is evicted before room is needed
    (local / digests[2] / CONFIG).write_text("{}")
    store.local_path(digests[2])
    assert _here(local) == {digests[0], digests[2]}


def test_eviction_passes_over_a_pinned_copy_and_takes_the_next(
    store: AdapterStore, digests: list[str], local: Path
) -> None:
    one, two, three = digests
    store.pin(one)
    for digest in (one, two, three):
        store.local_path(digest)
    assert _here(local) == {one, three}


def test_eviction_does_not_wait_for_a_copy_that_is_looked_at(
    store: AdapterStore, digests: list[str], local: Path
) -> None:
    one, two, three = digests
    store.local_path(one)
    store.local_path(two)
    with ThreadPoolExecutor(1) as pool, store._local.alone(one):
        pool.submit(store.local_path, three).result(timeout=10)
    assert _here(local) == {one, two, three}


def test_pin_counts_and_moves_to_the_recently_used(store: AdapterStore, digests: list[str], local: Path) -> None:
    one, two, three = digests
    store.local_path(one)
    store.local_path(two)
    store.pin(one)
    store.unpin(one)
    store.local_path(three)
    assert _here(local) == {one, three}
    with pytest.raises(AssertionError):
        store.unpin(one)


def test_copies_of_an_earlier_life_count_and_are_evicted_oldest_first(
    store: AdapterStore, url: str, digests: list[str], local: Path, size_bytes: int
) -> None:
    for digest in digests[:2]:
        store.local_path(digest)
        time.sleep(0.02)
    again = AdapterStore(url, local, max_local_bytes=2 * size_bytes + 10)
    again.local_path(digests[2])
    assert _here(local) == {digests[1], digests[2]}


def test_copy_of_an_earlier_life_is_verified_before_it_is_used(
    store: AdapterStore, url: str, digests: list[str], local: Path
) -> None:
    path = store.local_path(digests[0])
    (path / WEIGHTS).write_bytes(b"spoilt")
    again = AdapterStore(url, local)
    assert again.verified_path(digests[0]) is None
    assert (again.local_path(digests[0]) / WEIGHTS).read_bytes() != b"spoilt"
    assert again.verified_path(digests[0]) == path


def test_local_path_of_one_blob_by_many_threads_fetches_once(
    store: AdapterStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, times = RemoteBlobs.fetch, []

    def slow(self: RemoteBlobs, digest: str, into: Path) -> str:
        times.append(digest)
        time.sleep(0.05)
        return fetch(self, digest, into)

    monkeypatch.setattr(RemoteBlobs, "fetch", slow)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(store.local_path, [digests[0]] * 8))
    assert len(paths) == len(times) == 1


def test_copy_on_its_way_is_not_evicted_and_does_not_wait_for_another(
    store: AdapterStore, digests: list[str], local: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = digests
    fetch, under_way, go_on = RemoteBlobs.fetch, threading.Event(), threading.Event()

    def wait_for_one(self: RemoteBlobs, digest: str, into: Path) -> str:
        if digest == one:
            under_way.set()
            assert go_on.wait(10)
        return fetch(self, digest, into)

    monkeypatch.setattr(RemoteBlobs, "fetch", wait_for_one)
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(store.local_path, one)
        assert under_way.wait(10)
        store.local_path(two)
        store.local_path(three)  # room for one beside what is on its way
        assert _here(local) == {three}
        go_on.set()
        assert (fetched.result() / CONFIG).is_file()
    assert _here(local) == {one, three}


def test_many_threads_with_room_for_two_always_get_sound_copies(store: AdapterStore, digests: list[str]) -> None:
    def use(number: int) -> bytes:
        digest = digests[number % 3]
        store.pin(digest)
        try:
            path = store.local_path(digest)
            assert store.verified_path(digest) == path
            return (path / WEIGHTS).read_bytes()
        finally:
            store.unpin(digest)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(use, range(150)))
    assert len(set(found)) == 3


def test_sweep_drops_copies_that_no_version_names_but_not_pinned_ones(
    store: AdapterStore, digests: list[str], local: Path
) -> None:
    kept, pinned, _ = digests
    store.local_path(kept)
    store.pin(pinned)
    store.local_path(pinned)
    assert store.sweep(lambda: frozenset({kept}), older_than_s=3600) == ()
    store.sweep(lambda: frozenset({kept}), older_than_s=-5)
    assert _here(local) == {kept, pinned}
    assert store.local_path(pinned).is_dir()
    store.unpin(pinned)
    store.sweep(lambda: frozenset({kept}), older_than_s=-5)
    assert _here(local) == {kept}


def test_pin_and_verified_path_cost_microseconds_while_a_blob_is_fetched(
    store: AdapterStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.local_path(digests[0])
    go_on = threading.Event()
    fetch = RemoteBlobs.fetch

    def wait(self: RemoteBlobs, digest: str, into: Path) -> str:
        assert go_on.wait(10)
        return fetch(self, digest, into)

    monkeypatch.setattr(RemoteBlobs, "fetch", wait)
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(store.local_path, digests[1])
        times_s = []
        for _ in range(2000):
            start_s = time.perf_counter()
            store.pin(digests[0])
            assert store.verified_path(digests[0]) is not None
            store.unpin(digests[0])
            times_s.append(time.perf_counter() - start_s)
        go_on.set()
        fetched.result()
    assert sorted(times_s)[len(times_s) // 2] < 50e-6


def test_copy_gets_its_name_after_its_bytes_have_reached_the_disk(
    store: AdapterStore, digests: list[str], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, rename, synced = os.fsync, Path.rename, []

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def check(self: Path, target: Path) -> Path:
        assert {*self.iterdir(), self} <= set(synced)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    store.local_path(digests[0])
    assert synced[-1] == local


def test_copy_that_somebody_removed_is_fetched_again_and_takes_no_room(
    store: AdapterStore, digests: list[str], local: Path
) -> None:
    one, two, three = digests
    store.local_path(one)
    store.local_path(two)
    shutil.rmtree(local / one)
    store.local_path(three)
    assert _here(local) == {two, three}
    assert store.verified_path(one) is None
    assert store.local_path(one).is_dir()
    assert _here(local) == {three, one}


def test_quarantine_spares_a_sound_copy_that_another_process_has_put_in_the_place_of_the_spoilt_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(str(tmp_path / "root"), tmp_path / "unused")
    path = store.local_path(store.put(write_lora(tmp_path / "adapter")))
    (path / CONFIG).write_text("{}")

    def replace_meanwhile(files: dict[str, Path]) -> str:
        path.rename(tmp_path / "spoilt")
        shutil.copytree(tmp_path / "adapter", path)
        return "0" * 64

    with monkeypatch.context() as patch:
        patch.setattr(store_cache, "digest_files", replace_meanwhile)
        with pytest.raises(CorruptBlobError):
            store.local_path(path.name)
    assert store.local_path(path.name) == path


def test_read_file_gives_small_files_only(store: AdapterStore, digests: list[str], tmp_path: Path) -> None:
    assert store.read_file(digests[0], CONFIG) == (tmp_path / "adapter-0" / CONFIG).read_bytes()
    for name in ("card.md", WEIGHTS, "../x", "/etc/passwd"):
        with pytest.raises(AdapterNotFoundError, match="has no"):
            store.read_file(digests[0], name)


def test_sweep_of_a_local_store_removes_old_orphans_and_what_processes_left(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = AdapterStore(str(root), tmp_path / "unused")
    kept, pinned, orphan = (store.put(write_lora(tmp_path / f"a{seed}", seed=seed)) for seed in range(3))
    (root / ".tmp-left").mkdir()
    (root / ".tmp-left" / CONFIG).write_text("")
    store.pin(pinned)
    assert store.sweep(lambda: frozenset({kept}), older_than_s=3600) == ()
    assert (root / ".tmp-left").is_dir()
    assert store.sweep(lambda: frozenset({kept}), older_than_s=-5) == (orphan,)
    assert _here(root) == {kept, pinned}
    assert not (root / ".tmp-left").exists()
    assert store.verified_path(orphan) is None
    with pytest.raises(StoreError, match="not in the store"):
        store.local_path(orphan)


def test_blob_with_a_link_or_folder_in_it_is_corrupt(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path / "root"), tmp_path / "unused")
    for change in ("link", "folder"):
        path = store.local_path(store.put(write_lora(tmp_path / "adapter")))
        data = (path / CONFIG).read_bytes()
        (path / CONFIG).unlink()
        if change == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            (path / CONFIG).symlink_to(tmp_path / "elsewhere")
        else:
            (path / CONFIG).mkdir()
        with pytest.raises(CorruptBlobError):
            store.local_path(path.name)
