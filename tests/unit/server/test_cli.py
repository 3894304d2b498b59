import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import server.cli
from tests.fixtures.scripted_server import Answer, ScriptedServer, scripted_server

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
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server with a good answer, which commands find by the environment."""
    with scripted_server() as script:
        monkeypatch.setenv("MEDLEY_SERVER", script.url)
        script.answers = [Answer(body=ANSWER)]
        yield script


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from server.cli import app; from typer.testing import CliRunner;"
        "runs = ([], ['adapters'], ['keys'], ['adapters', 'push'], ['keys', 'create'],"
        "['eval', 'replay'], ['eval', 'report']);"
        "assert all(CliRunner().invoke(app, [*run, '--help']).exit_code == 0 for run in runs);"
        "assert CliRunner().invoke(app, ['--version']).output.startswith('medley ');"
        "heavy = ('torch', 'transformers', 'fastapi', 'grpc', 'sqlalchemy', 'httpx', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_summarize_sends_the_text_and_shows_the_summary(fake: ScriptedServer) -> None:
    done = CliRunner().invoke(server.cli.app, ["summarize", "some text", "--adapter", "lora", "--adapter", "soft"])
    assert done.stdout == "They meet on Friday.\n"
    assert [(sent.method, sent.path) for sent in fake.sent] == [("POST", "/v1/summarize")]
    assert fake.sent[0].json() == {
        "text": "some text",
        "adapters": ["lora", "soft"],
        "max_new_tokens": 128,
        "priority": 0,
    }
    assert "authorization" not in fake.sent[0].headers


def test_summarize_table_shows_the_facts(fake: ScriptedServer) -> None:
    done = CliRunner().invoke(server.cli.app, ["summarize", "x", "--output", "table", "--reference", "y"])
    assert all(fact in done.stdout for fact in ("They meet on Friday.", "r-1", "lora:2", "12.3"))
    assert fake.sent[0].json()["references"] == ["y"]


def test_summarize_reads_standard_input_or_a_file(fake: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("from a file")
    CliRunner().invoke(server.cli.app, ["summarize", "-"], input="from a pipe")
    CliRunner().invoke(server.cli.app, ["summarize", "--file", str(tmp_path / "text")])
    assert [sent.json()["text"] for sent in fake.sent] == ["from a pipe", "from a file"]


@pytest.mark.parametrize("arguments", [[], ["x", "--file", "y"], ["--file", "/nowhere"]])
def test_summarize_without_one_text_fails(fake: ScriptedServer, arguments: list[str]) -> None:
    done = CliRunner().invoke(server.cli.app, ["summarize", *arguments])
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")


def test_serve_passes_on_what_was_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(
        server.cli.serve, "_run_server", lambda config, given, *, on_ray: calls.append((config, given, on_ray))
    )
    options = ["--port", "0", "--engine", "fake", "--data-dir", "d", "--max-model-len", "512"]
    CliRunner().invoke(server.cli.app, ["serve", *options])
    CliRunner().invoke(
        server.cli.app,
        [
            "serve",
            *(
                "--registry-url",
                "postgresql+psycopg://db/medley",
                "--store-url",
                "s3://bucket",
                "--allow-open",
                "--ray",
            ),
            *("--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-client-ca", "ca.pem"),
        ],
    )
    files = {"cert_file": Path("cert.pem"), "key_file": Path("key.pem"), "client_ca_file": Path("ca.pem")}
    assert calls == [
        (None, {"port": 0, "data_dir": Path("d"), "engine": {"name": "fake", "max_model_len": 512}}, False),
        (
            None,
            {
                "registry": {"url": "postgresql+psycopg://db/medley"},
                "store": {"url": "s3://bucket"},
                "tls": files,
                "access": {"allow_open": True},
            },
            True,
        ),
    ]


def test_serve_with_a_bad_setting_fails_by_name() -> None:
    done = CliRunner().invoke(server.cli.app, ["serve", "--port", "70000"])
    assert done.exit_code == 1
    assert "port" in done.stderr


def test_room_whose_packages_are_missing_leaves_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no.such.module:app", "medley.commands")
    monkeypatch.setattr(server.cli, "entry_points", lambda group: [broken])
    monkeypatch.setattr(server.cli, "app", typer.Typer())
    server.cli.app.command("other")(lambda: None)
    server.cli._mount_commands()
    assert CliRunner().invoke(server.cli.app, ["other"]).exit_code == 0
    done = CliRunner().invoke(server.cli.app, ["broken"])
    assert (done.exit_code, "not available here" in done.stderr) == (1, True)


def mounted(monkeypatch: pytest.MonkeyPatch, point: EntryPoint) -> typer.Typer:
    """A command line with a group of its own, and what one entry point brings."""
    ours, whole = typer.Typer(), typer.Typer()
    ours.command("report")(lambda: typer.echo("ours"))
    whole.add_typer(ours, name="eval")
    monkeypatch.setattr(server.cli, "entry_points", lambda group: [point])
    monkeypatch.setattr(server.cli, "app", whole)
    server.cli._mount_commands()
    return whole


def room() -> typer.Typer:
    app = typer.Typer(help="A room's own.")
    app.command("adapters")(lambda: typer.echo("theirs"))
    return app


ROOM = room()


def test_commands_of_a_room_stand_beside_those_of_a_group_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    app = mounted(monkeypatch, EntryPoint("eval", f"{__name__}:ROOM", "medley.commands"))
    assert CliRunner().invoke(app, ["eval", "report"]).stdout == "ours\n"
    assert CliRunner().invoke(app, ["eval", "adapters"]).stdout == "theirs\n"


def test_room_whose_packages_are_missing_leaves_the_groups_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    app = mounted(monkeypatch, EntryPoint("eval", "no.such.module:app", "medley.commands"))
    assert CliRunner().invoke(app, ["eval", "report"]).stdout == "ours\n"
    assert "not available here" in CliRunner().invoke(app, ["eval", "--help"]).stdout
