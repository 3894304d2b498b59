"""What every command that calls a server shares: the key, TLS, repeats and errors."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from typer.testing import CliRunner, Result

from server.cli import app
from tests.fixtures.scripted_server import Answer, ScriptedServer, scripted_server

TOKEN = "mdl_abc_0123456789"
ADAPTER = {"name": "a", "versions": [], "aliases": {"stable": 2}}
WRITE = ["adapters", "rollback", "a", "--json"]
LIST = ["adapters", "list", "--json"]


@pytest.fixture
def fake() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        script.answers = [Answer(body=ADAPTER)]
        yield script


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of them waited for."""
    waited: list[float] = []
    monkeypatch.setattr("server.cli.client.time", SimpleNamespace(sleep=waited.append))
    return waited


def run(url: str, *arguments: str, **options: object) -> Result:
    return CliRunner().invoke(app, [*arguments, "--server", url], **options)  # type: ignore[arg-type]


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    return Answer(status, {"error": {"code": code, "message": message}}, headers)


@pytest.mark.parametrize("way", ["option", "environment", "file", "pipe"])
def test_key_travels_as_a_bearer_token(fake: ScriptedServer, tmp_path: Path, way: str) -> None:
    (tmp_path / "key").write_text(f"{TOKEN}\n")
    arguments = {"option": ["--key", TOKEN], "file": ["--key-file", str(tmp_path / "key")], "pipe": ["--key-file", "-"]}
    env = {"MEDLEY_KEY": TOKEN} if way == "environment" else {"MEDLEY_KEY": "another"}
    done = run(fake.url, *LIST, *arguments.get(way, []), env=env, input=TOKEN)
    assert done.exit_code == 0, done.stderr
    assert fake.sent[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in done.output


@pytest.mark.parametrize("arguments", [["--key", "two words"], ["--key", "schlüssel"], ["--key-file", "/nowhere"]])
def test_key_that_cannot_be_one_fails_unsent_and_unsaid(fake: ScriptedServer, arguments: list[str]) -> None:
    done = run(fake.url, *LIST, *arguments)
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")
    assert "two words" not in done.output


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (refusal(404, "NOT_FOUND", "there is no\nadapter"), "medley: NOT_FOUND: there is no adapter\n"),
        (
            refusal(401, "UNAUTHENTICATED", "who?"),
            "medley: UNAUTHENTICATED: who? (give a key by MEDLEY_KEY or --key-file; `medley keys create` makes one)\n",
        ),
        (
            refusal(429, "RESOURCE_EXHAUSTED", "too many requests", **{"retry-after": "7"}),
            "medley: RESOURCE_EXHAUSTED: too many requests (try again in 7 s)\n",
        ),
        (
            refusal(400, "INVALID_ARGUMENT", "a \x1b[31mred"),
            "medley: INVALID_ARGUMENT: a \N{REPLACEMENT CHARACTER}[31mred\n",
        ),
    ],
)
def test_refusal_is_one_line_with_code_and_message(fake: ScriptedServer, answer: Answer, line: str) -> None:
    fake.answers = [answer]
    done = run(fake.url, *LIST)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", line)
    assert len(fake.sent) == 1


@pytest.mark.parametrize("answer", [Answer(200, "<html>"), Answer(200, "[]"), Answer(502, "oops"), Answer(301, {})])
def test_answer_of_another_server_is_told_apart(fake: ScriptedServer, answer: Answer) -> None:
    fake.answers = [answer]
    done = run(fake.url, *LIST)
    assert done.exit_code == 1
    assert done.stderr.startswith("medley: INTERNAL: ")
    assert "is --server right?" in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[::1"])
def test_no_server_fails_with_what_to_do(url: str) -> None:
    done = run(url, "summarize", "x")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "http://host:port" in done.stderr


def test_change_without_an_answer_is_sent_again_under_one_key(fake: ScriptedServer, waits: list[float]) -> None:
    starting = refusal(503, "UNAVAILABLE", "draining", **{"retry-after": "3"})
    fake.answers = [Answer(0), starting, refusal(503, "UNAVAILABLE", "draining"), Answer(body=ADAPTER)]
    done = run(fake.url, *WRITE)
    assert (done.exit_code, json.loads(done.stdout)) == (0, ADAPTER)
    assert waits == [0.5, 3.0, 2.0]
    assert len({sent.headers["idempotency-key"] for sent in fake.sent}) == 1
    assert {sent.body for sent in fake.sent} == {b'{"alias":"stable"}'}


def test_changes_have_keys_of_their_own(fake: ScriptedServer) -> None:
    run(fake.url, *WRITE)
    run(fake.url, *WRITE)
    assert len({sent.headers["idempotency-key"] for sent in fake.sent}) == 2


def test_change_never_answered_ends_after_a_few_attempts(fake: ScriptedServer, waits: list[float]) -> None:
    fake.answers = [refusal(503, "UNAVAILABLE", "draining")]
    done = run(fake.url, *WRITE)
    assert (done.exit_code, len(fake.sent)) == (1, 5)
    assert done.stderr.endswith("medley: UNAVAILABLE: draining\n")


def test_refused_change_is_not_sent_again(fake: ScriptedServer, waits: list[float]) -> None:
    fake.answers = [refusal(412, "FAILED_PRECONDITION", "no earlier target")]
    assert run(fake.url, *WRITE).exit_code == 1
    assert (len(fake.sent), waits) == (1, [])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[ScriptedServer]:
    """A server that wants a certificate of the authority from its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with scripted_server(context) as script:
        script.answers = [Answer(body=ADAPTER)]
        yield script


def test_tls_with_certificates_on_both_sides(secure: ScriptedServer, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("operator@example.org")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trust = ["--ca-file", str(tmp_path / "ca.pem")]
    both = [*trust, "--client-cert", str(tmp_path / "cert.pem"), "--client-key", str(tmp_path / "key.pem")]
    for options in ([*trust, "--client-cert", str(tmp_path / "own.pem")], both):
        done = run(secure.url, *LIST, *options)
        assert (done.exit_code, done.stderr) == (0, "")


def test_tls_without_the_certificate_asked_for_says_so(
    secure: ScriptedServer, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    done = run(secure.url, *LIST, "--ca-file", str(tmp_path / "ca.pem"))
    assert (done.exit_code, secure.sent) == (1, [])
    assert "--client-cert" in done.stderr


def test_tls_of_an_unknown_authority_fails_at_once(secure: ScriptedServer, waits: list[float]) -> None:
    done = run(secure.url, *WRITE)
    assert (done.exit_code, secure.sent, waits) == (1, [], [])
    assert "--ca-file" in done.stderr


@pytest.mark.parametrize(
    "options", [["--ca-file", "/nowhere"], ["--client-cert", "/nowhere"], ["--client-key", "/nowhere"]]
)
def test_certificate_that_cannot_be_read_fails(fake: ScriptedServer, options: list[str]) -> None:
    done = run(fake.url, *LIST, *options)
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")
