"""What the documents say must be so: targets, commands, files and rooms they name exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from server.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_named_in_documents_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_medley_commands_named_in_documents_exist(document: Path) -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"^(?:\$ )?(?:\.venv/bin/)?medley ([a-z]+)", document.read_text(), re.MULTILINE))
    assert named <= commands


def test_architecture_page_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path.parent for path in (ROOT / "server").glob("*/__init__.py")]
    missing = [f"server/{room.name}" for room in rooms if f"server/{room.name}" not in text]
    others = ("adapters", "training", "loadtest", "benchmarks", "protos")
    missing += [room for room in others if f"`{room}/" not in text]
    assert missing == []
