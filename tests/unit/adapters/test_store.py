"""Blobs by digest: atomic, idempotent, verified, on a local disk and through fsspec."""

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import pytest

from adapters import store_cache
from adapters.adapter_folder import adapter_files
from adapters.digest import digest_files
from adapters.errors import CorruptBlobError, InvalidAdapterError, InvalidAdapterReferenceError, StoreError
from adapters.store import AdapterStore
from tests.fixtures.adapters import CONFIG, WEIGHTS, write_lora


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = write_lora(tmp_path / "adapter")
    (folder / "card.md").write_text("# card")
    return folder


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (tmp_path / "root").as_uri() if request.param == "local" else f"memory://{uuid.uuid4().hex}/adapters"


@pytest.fixture
def store(url: str, tmp_path: Path) -> AdapterStore:
    return AdapterStore(url, tmp_path / "cache")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.startswith(".tmp-")]


def test_put_then_local_path_gives_the_same_files(store: AdapterStore, adapter: Path, tmp_path: Path) -> None:
    digest = store.put(adapter)
    assert digest == digest_files(adapter_files(adapter))
    path = store.local_path(digest)
    assert path.name == digest
    assert _contents(path) == _contents(adapter)
    assert _leftovers(tmp_path) == []


def test_put_twice_keeps_one_blob(store: AdapterStore, adapter: Path, tmp_path: Path) -> None:
    digest = store.put(adapter)
    before = store.local_path(digest).stat().st_ino
    assert store.put(adapter) == digest
    assert store.local_path(digest).stat().st_ino == before
    assert _leftovers(tmp_path) == []


def test_put_of_pefts_sub_folder_has_the_digest_of_the_flat_folder(store: AdapterStore, tmp_path: Path) -> None:
    flat, nested = write_lora(tmp_path / "flat"), tmp_path / "nested"
    write_lora(nested / "news")
    assert store.put(flat) == store.put(nested)


def test_put_from_many_threads_gives_one_blob(store: AdapterStore, adapter: Path, tmp_path: Path) -> None:
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(store.put(adapter))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [store.put(adapter)] * 8
    assert _contents(store.local_path(digests[0])) == _contents(adapter)
    assert _leftovers(tmp_path) == []


def test_put_of_foreign_files_is_refused_and_leaves_nothing(store: AdapterStore, adapter: Path, tmp_path: Path) -> None:
    (adapter / "evil.bin").write_bytes(b"x")
    with pytest.raises(InvalidAdapterError):
        store.put(adapter)
    assert _leftovers(tmp_path) == []


def test_put_on_a_full_disk_is_a_store_error_and_leaves_nothing(
    store: AdapterStore, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="No space left"):
            store.put(adapter)
    assert _leftovers(tmp_path) == []
    assert not (tmp_path / "root" / digest_files(adapter_files(adapter))).exists()


@pytest.mark.parametrize(
    "digest", ["", "..", "../../etc", "a" * 63, "A" * 64, "a" * 64 + "/..", "/etc/passwd", ".tmp-x"]
)
def test_local_path_of_anything_but_a_digest_is_refused(store: AdapterStore, digest: str) -> None:
    with pytest.raises(InvalidAdapterReferenceError):
        store.local_path(digest)


def test_local_path_of_unknown_digest_is_a_store_error(store: AdapterStore) -> None:
    with pytest.raises(StoreError, match="not in the store"):
        store.local_path("a" * 64)


def test_local_path_of_corrupt_local_blob_is_put_away_and_put_heals(adapter: Path, tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path / "root"), tmp_path / "cache")
    digest = store.put(adapter)
    path = store.local_path(digest)
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (path / WEIGHTS).write_bytes(data)
    with pytest.raises(CorruptBlobError):
        store.local_path(digest)
    assert not path.exists()
    assert [found.name[:64] for found in (tmp_path / "root" / ".quarantine").iterdir()] == [digest]
    with pytest.raises(StoreError, match="not in the store"):
        store.local_path(digest)
    assert store.put(adapter) == digest
    assert _contents(store.local_path(digest)) == _contents(adapter)


def test_put_over_a_corrupt_blob_heals_it(adapter: Path, tmp_path: Path) -> None:
    digest = AdapterStore(str(tmp_path / "root"), tmp_path).put(adapter)
    (tmp_path / "root" / digest / CONFIG).write_text("{}")
    store = AdapterStore(str(tmp_path / "root"), tmp_path)
    assert store.put(adapter) == digest
    assert _contents(store.local_path(digest)) == _contents(adapter)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_local_path_of_blob_with_other_files_is_corrupt(adapter: Path, tmp_path: Path, change: str) -> None:
    store = AdapterStore(str(tmp_path / "root"), tmp_path)
    path = store.local_path(store.put(adapter))
    if change == "missing":
        (path / "card.md").unlink()
    else:
        (path / "README.md").write_text("more")
    with pytest.raises(CorruptBlobError):
        store.local_path(path.name)


def test_local_path_of_untouched_blob_is_hashed_once(
    store: AdapterStore, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put(adapter)
    store.local_path(digest)

    def refuse(files: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(store_cache, "digest_files", refuse)
    store.local_path(digest)


def test_local_path_of_remote_blob_is_fetched_by_another_server(adapter: Path, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    digest = AdapterStore(url, tmp_path / "one").put(adapter)
    other = AdapterStore(url, tmp_path / "two")
    assert _contents(other.local_path(digest)) == _contents(adapter)
    # A spoilt local copy is fetched again; the remote blob is sound.
    (tmp_path / "two" / digest / CONFIG).write_text("{}")
    assert _contents(other.local_path(digest)) == _contents(adapter)
    assert _leftovers(tmp_path) == []


def test_local_path_of_half_uploaded_remote_blob_is_not_there(adapter: Path, tmp_path: Path) -> None:
    key = uuid.uuid4().hex
    digest = AdapterStore(f"memory://{key}", tmp_path / "one").put(adapter)
    fsspec.filesystem("memory").rm_file(f"/{key}/{digest}/.complete")
    other = AdapterStore(f"memory://{key}", tmp_path / "two")
    with pytest.raises(StoreError, match="not in the store"):
        other.local_path(digest)
    assert other.put(adapter) == digest
    assert _contents(AdapterStore(f"memory://{key}", tmp_path / "three").local_path(digest)) == _contents(adapter)


def test_local_path_of_corrupt_remote_blob_is_put_away(adapter: Path, tmp_path: Path) -> None:
    key = uuid.uuid4().hex
    digest = AdapterStore(f"memory://{key}", tmp_path / "one").put(adapter)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{key}/{digest}/{CONFIG}", b"{}")
    other = AdapterStore(f"memory://{key}", tmp_path / "two")
    with pytest.raises(CorruptBlobError):
        other.local_path(digest)
    assert not memory.exists(f"/{key}/{digest}/{CONFIG}")
    assert memory.exists(f"/{key}/.quarantine")
    assert _leftovers(tmp_path) == []
    with pytest.raises(StoreError, match="not in the store"):
        other.local_path(digest)


def test_open_removes_what_a_dead_process_left_and_spares_the_living(tmp_path: Path) -> None:
    for name, age_s in ((".tmp-old", 7200), (".tmp-young", 0)):
        (tmp_path / name).mkdir()
        stamp_s = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (stamp_s, stamp_s))
    AdapterStore(str(tmp_path), tmp_path)
    assert _leftovers(tmp_path) == [".tmp-young"]


def test_open_of_an_impossible_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file" / "root"), "nonsense://bucket"):
        with pytest.raises(StoreError):
            AdapterStore(url, tmp_path / "cache")


_PUT_IN_A_LOOP = """
import os, sys
from pathlib import Path
from adapters.store import AdapterStore
store = AdapterStore(sys.argv[1], Path(sys.argv[2]))
for _ in range(150):
    digest = store.put(Path(sys.argv[3]))
    assert (store.local_path(digest) / "card.md").read_text() == "# card"
    os.utime(Path(sys.argv[1]) / digest, (1, 1))  # it seems to have been put long ago: a sweep may take it now
"""
_SWEEP_IN_A_LOOP = """
import sys
from pathlib import Path
from adapters.store import AdapterStore
store = AdapterStore(sys.argv[1], Path(sys.argv[2]))
print("ready", flush=True)
removed = 0
while not Path(sys.argv[3]).exists():
    removed += len(store.sweep(frozenset, older_than_s=3600))
print(removed)
"""


def test_sweep_spares_what_became_needed_after_it_looked(
    store: AdapterStore, url: str, adapter: Path, tmp_path: Path
) -> None:
    digest = store.put(adapter)
    # Another server's, which has no copy of its own: where there is a place behind the disk, it is that one's sweep.
    sweeper = AdapterStore(url, tmp_path / "cache-of-another")
    answers = iter([frozenset[str]()] * (1 if url.startswith("file:") else 2))
    assert sweeper.sweep(lambda: next(answers, frozenset({digest})), older_than_s=-5) == ()
    assert store.local_path(digest).is_dir()


def test_keep_puts_again_what_a_sweep_took_before_it_was_needed(store: AdapterStore, adapter: Path) -> None:
    digest = store.put(adapter)
    assert store.sweep(frozenset, older_than_s=-5) == (digest,)
    store.keep(adapter, digest)
    assert _contents(store.local_path(digest)) == _contents(adapter)


def test_keep_leaves_alone_what_is_there(store: AdapterStore, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.put(adapter)
    monkeypatch.setattr(store, "put", None)
    store.keep(adapter, digest)


def test_put_in_one_process_is_never_lost_to_a_sweep_in_another(adapter: Path, tmp_path: Path) -> None:
    root, local, done = str(tmp_path / "root"), str(tmp_path / "local"), tmp_path / "done"
    run = [sys.executable, "-c"]
    with subprocess.Popen([*run, _SWEEP_IN_A_LOOP, root, local, str(done)], stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        assert sweep.stdout.readline() == "ready\n"
        code = subprocess.run([*run, _PUT_IN_A_LOOP, root, local, str(adapter)], check=False, timeout=120).returncode
        done.touch()
        num_removed = int(sweep.stdout.read())
    assert code == 0
    assert num_removed > 10
    assert _leftovers(tmp_path) == []
