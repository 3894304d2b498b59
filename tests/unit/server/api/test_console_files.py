"""The files of the console: that they ask nobody else, and that the vendored ones are as they came."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from server.api.http.console.files import read_console

CONSOLE = Path(__file__).parents[4] / "server" / "api" / "http" / "console"
VENDOR = CONSOLE / "vendor"
OWN = sorted(path for path in (CONSOLE / "page").rglob("*") if path.is_file())
MAX_FILE_LINES = 400
ADDRESS = re.compile(r"https?://[\w.-]+")
NAMESPACE = "http://www.w3.org"


def test_table_has_every_file_of_the_page() -> None:
    assets = set(read_console().assets)
    named = {path.relative_to(CONSOLE / "page").as_posix() for path in OWN} - {"index.html"}
    assert named <= assets
    assert {path for path in assets - named if not path.startswith("vendor/")} == set()


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_own_file_names_no_other_host_and_stays_small(path: Path) -> None:
    text = path.read_text("utf-8")
    code = re.sub(r"^//.*$", "", text, flags=re.MULTILINE)
    assert [found for found in ADDRESS.findall(code) if found != NAMESPACE] == []
    assert text.count("\n") <= MAX_FILE_LINES


def test_page_has_nothing_inline() -> None:
    index = (CONSOLE / "page" / "index.html").read_text("utf-8")
    assert re.findall(r"<style|style=|\son\w+=|javascript:", index) == []
    assert [found for found in re.findall(r"<script([^>]*)>", index) if 'src="/console/' not in found] == []


def test_page_names_every_module_so_that_none_waits_for_another() -> None:
    index = (CONSOLE / "page" / "index.html").read_text("utf-8")
    named = re.findall(r'(?:href|src)="/console/([^"]+\.js)"', index)
    assert sorted(named) == sorted(path for path in read_console().assets if path.endswith(".js"))


def test_every_imported_file_is_there() -> None:
    for path in [*OWN, *VENDOR.glob("*.js")]:
        if path.suffix == ".js":
            imported = re.findall(r'(?:from|import)\s*"(\.[^"]+)"', path.read_text("utf-8"))
            # The vendored ones lie beside the page's files and are served below them.
            places = [(path.parent / name).resolve() for name in imported]
            served = [Path(str(place).replace("/page/vendor/", "/vendor/")) for place in places]
            assert [str(place) for place in served if not place.is_file()] == [], path


def test_vendored_files_are_as_they_came() -> None:
    listed = json.loads((VENDOR / "vendored.json").read_text("utf-8"))
    kept = {path.name for path in VENDOR.iterdir() if path.suffix in {".js", ".css", ".LICENSE"}}
    assert {entry["file"] for entry in listed} == kept
    for entry in listed:
        assert hashlib.sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["file"]


def test_vendored_packages_are_pinned_licensed_and_from_no_named_host() -> None:
    listed = json.loads((VENDOR / "vendored.json").read_text("utf-8"))
    wanted = json.loads((VENDOR / "package.json").read_text("utf-8"))["dependencies"]
    assert {entry["package"]: entry["version"] for entry in listed} == wanted
    assert {entry["license"] for entry in listed} <= {"MIT", "Apache-2.0"}
    assert {f"{package}.LICENSE" for package in wanted} <= {entry["file"] for entry in listed}
    lock = (VENDOR / "package-lock.json").read_text("utf-8")
    packages = json.loads(lock)["packages"]
    assert {
        name.removeprefix("node_modules/"): package["version"] for name, package in packages.items() if name
    } == wanted
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert '"resolved"' not in lock
