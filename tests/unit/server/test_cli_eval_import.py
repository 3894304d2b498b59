"""``medley eval import``: what is sent of a file, and what is shown of the answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from server.cli.evaluation import importing
from server.cli.evaluation.importing import Piece, pieces
from tests.fixtures.scripted_server import Answer, ScriptedServer, scripted_server


def taken(accepted: int = 1, unknown: int = 0, *errors: tuple[int, str]) -> Answer:
    told = [{"line": line, "message": message} for line, message in errors]
    return Answer(body={"num_accepted": accepted, "num_unknown": unknown, "num_refused": len(told), "errors": told})


@pytest.fixture
def fake() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


def run(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", "import", *arguments, "--server", server.url])


def test_file_is_sent_as_it_is_and_its_counts_are_shown(fake: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "references.jsonl"
    file.write_text('{"request_id": "a", "reference": "x"}\n')
    fake.answers = [taken(3, 2)]
    done = run(fake, str(file))
    assert (done.exit_code, done.stdout) == (0, "accepted 3 unknown 2 refused 0\n")
    [sent] = fake.sent
    assert (sent.method, sent.path) == ("POST", "/v1/references/batch")
    assert (sent.headers["content-type"], sent.body) == ("application/jsonl", file.read_bytes())


def test_refused_rows_are_shown_by_the_files_own_lines(
    fake: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_MAX_NUM_ROWS", 2)
    file = tmp_path / "references.csv"
    file.write_bytes(b'request_id,reference\na,x\nb,"two\nlines"\nc,x\nd,x\ne,x\n')
    fake.answers = [taken(2), taken(1, 0, (3, "bad \x1b[31m")), taken(0, 1)]
    done = run(fake, str(file))
    assert done.exit_code == 1
    assert "accepted 3 unknown 1 refused 1" in done.stdout
    assert done.stderr == f"{file}:6: bad \N{REPLACEMENT CHARACTER}[31m\n"
    assert [sent.body for sent in fake.sent] == [
        b'request_id,reference\na,x\nb,"two\nlines"\n',
        b"request_id,reference\nc,x\nd,x\n",
        b"request_id,reference\ne,x\n",
    ]


def test_json_output_is_one_document(fake: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "references.jsonl"
    file.write_text("{}\n")
    fake.answers = [taken(0, 0, (1, "give one"))]
    done = run(fake, str(file), "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "num_accepted": 0,
        "num_unknown": 0,
        "num_refused": 1,
        "errors": [{"line": 1, "message": "give one"}],
    }


@pytest.mark.parametrize("name", ["references.txt", "missing.csv"])
def test_file_that_cannot_be_sent_fails_unsent(fake: ScriptedServer, tmp_path: Path, name: str) -> None:
    (tmp_path / "references.txt").write_text("x")
    done = run(fake, str(tmp_path / name))
    assert done.exit_code == 1
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")
    assert fake.sent == []


def test_pieces_are_whole_rows_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MAX_PIECE_BYTES", 10)
    lines = [b"12345\n", b"1234\n", b"a very long line\n", b"x\n"]
    assert list(pieces(lines, with_header=False)) == [
        Piece(b"12345\n", 0),
        Piece(b"1234\n", 1),
        Piece(b"a very long line\n", 2),
        Piece(b"x\n", 3),
    ]
    assert list(pieces([], with_header=True)) == [Piece(b"", 0)]


def test_trainings_own_eval_command_stands_beside() -> None:
    shown = CliRunner().invoke(app, ["eval", "--help"]).stdout
    assert "import" in shown
    assert "adapters" in shown
