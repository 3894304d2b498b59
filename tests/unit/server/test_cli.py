import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from server import cli

ROOT = Path(__file__).parents[3]
ANSWER = {
    "request_id": "r-1",
    "summary": "They meet on Friday.",
    "finish_reason": "stop",
    "adapters": [{"name": "lora", "version": 2}],
    "usage": {"prompt_tokens": 9},
    "timings": {"e2e_ms": 12.345},
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the client posted; the answer is a good one."""
    posted: list[dict[str, object]] = []

    def post(url: str, *, json: dict[str, object], timeout: float) -> httpx.Response:
        posted.append({"url": url, **json})
        return httpx.Response(200, json=ANSWER)

    monkeypatch.setattr(httpx, "post", post)
    return posted


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from server.cli import app; from typer.testing import CliRunner;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "assert CliRunner().invoke(app, ['--version']).output.startswith('medley ');"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'grpc', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_summarize_sends_the_text_and_shows_the_summary(sent: list[dict[str, object]]) -> None:
    done = CliRunner().invoke(cli.app, ["summarize", "some text", "--adapter", "lora", "--adapter", "soft"])
    assert done.stdout == "They meet on Friday.\n"
    assert sent == [
        {
            "url": "http://127.0.0.1:8000/v1/summarize",
            "text": "some text",
            "adapters": ["lora", "soft"],
            "max_new_tokens": 128,
        }
    ]


def test_summarize_table_shows_the_facts(sent: list[dict[str, object]]) -> None:
    done = CliRunner().invoke(cli.app, ["summarize", "x", "--output", "table", "--reference", "y"])
    assert all(fact in done.stdout for fact in ("They meet on Friday.", "r-1", "lora:2", "12.3"))
    assert sent[0]["references"] == ["y"]


def test_summarize_reads_standard_input_or_a_file(sent: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("from a file")
    CliRunner().invoke(cli.app, ["summarize", "-"], input="from a pipe")
    CliRunner().invoke(cli.app, ["summarize", "--file", str(tmp_path / "text")])
    assert [body["text"] for body in sent] == ["from a pipe", "from a file"]


@pytest.mark.parametrize("arguments", [[], ["x", "--file", "y"], ["--file", "/nowhere"]])
def test_summarize_without_one_text_fails(sent: list[dict[str, object]], arguments: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["summarize", *arguments])
    assert (done.exit_code, sent) == (1, [])
    assert done.stderr.startswith("medley: ")


def test_summarize_refused_shows_code_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": {"code": "NOT_FOUND", "message": "there is no adapter"}}
    monkeypatch.setattr(httpx, "post", lambda *_, **__: httpx.Response(404, content=json.dumps(error)))
    done = CliRunner().invoke(cli.app, ["summarize", "x"])
    assert (done.exit_code, done.stderr) == (1, "medley: NOT_FOUND: there is no adapter\n")


def test_summarize_without_a_server_fails() -> None:
    done = CliRunner().invoke(cli.app, ["summarize", "x", "--server", "http://127.0.0.1:1"])
    assert done.exit_code == 1
    assert "no answer from http://127.0.0.1:1" in done.stderr


def test_serve_passes_on_what_was_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(cli, "_run_server", lambda config, given: calls.append((config, given)))
    CliRunner().invoke(cli.app, ["serve", "--port", "0", "--engine", "fake", "--data-dir", "d"])
    assert calls == [(None, {"port": 0, "data_dir": Path("d"), "engine": {"name": "fake"}})]


def test_serve_with_a_bad_setting_fails_by_name() -> None:
    done = CliRunner().invoke(cli.app, ["serve", "--port", "70000"])
    assert done.exit_code == 1
    assert "port" in done.stderr


def test_room_whose_packages_are_missing_leaves_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no.such.module:app", "medley.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [broken])
    monkeypatch.setattr(cli, "app", typer.Typer())
    cli.app.command("other")(lambda: None)
    cli._mount_commands()
    assert CliRunner().invoke(cli.app, ["other"]).exit_code == 0
    done = CliRunner().invoke(cli.app, ["broken"])
    assert (done.exit_code, "not available here" in done.stderr) == (1, True)
