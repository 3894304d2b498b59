import subprocess
import sys
from pathlib import Path

import pytest

from server.core.errors import FailedPreconditionError
from server.runtime.data_dir import locked, read_instance


def test_data_dir_is_made_and_held_by_one_server(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    with locked(data_dir):
        with pytest.raises(FailedPreconditionError, match="another server"), locked(data_dir):
            pass
        assert data_dir.is_dir()
    with locked(data_dir):
        pass


def test_data_dir_is_free_again_after_a_crash(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from server.runtime.data_dir import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[4])
    assert (tmp_path / "lock").exists()
    with locked(tmp_path):
        pass


def test_data_dir_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="cannot use"), locked(tmp_path / "file"):
        pass


def test_instance_stays_the_same_and_is_of_one_directory(tmp_path: Path) -> None:
    first = read_instance(tmp_path / "new" / "one")
    assert first == read_instance(tmp_path / "new" / "one")
    assert 0 < len(first) <= 64
    assert read_instance(tmp_path / "two") != first


def test_instance_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="cannot use"):
        read_instance(tmp_path / "file")
