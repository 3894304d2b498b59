"""``medley adapters``: what each command asks of the server and shows of its answer."""

import json
import tarfile
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from tests.fixtures.scripted_server import Answer, ScriptedServer, Sent, scripted_server

DIGEST = "ab" * 32
VERSION = {
    "name": "tweets",
    "version": 2,
    "digest": DIGEST,
    "kind": "lora",
    "state": "ready",
    "reason": "",
    "rank": 8,
    "num_virtual_tokens": 0,
    "size_bytes": 1_234_567,
    "task": "summarize",
    "licence": "Apache-2.0",
    "description": "[red]of \x1b[31mtweets",
    "tags": ["night", "eu"],
    "scores": {"rouge1": 31.5},
    "metrics": ["bleu", "chrf"],
    "prompt_template": "",
    "created_s": 1_700_000_000.0,
}
RETIRED = VERSION | {"version": 1, "state": "retired", "reason": "by key:ab", "tags": []}
ADAPTER = {"name": "tweets", "versions": [RETIRED, VERSION], "aliases": {"stable": 2, "canary": 2}}
CHANGE = {
    "time_s": 1_700_000_000.0,
    "who": "key:3f9a",
    "origin": "10.0.0.7",
    "action": "set_alias",
    "name": "tweets",
    "version": 2,
    "alias": "stable",
    "digest": DIGEST,
    "detail": "was 1",
}


@pytest.fixture
def fake() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a training run leaves: an adapter and things that are none of a server's business."""
    path = tmp_path / "run"
    path.mkdir()
    for name in ("adapter_config.json", "medley.json", "card.md", "optimizer.pt", "training_args.bin", "notes.txt"):
        (path / name).write_text(name)
    (path / "adapter_model.safetensors").write_bytes(b"w" * 1_000_000)
    return path


def run(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["adapters", *arguments, "--server", server.url])


def parts(sent: Sent) -> list[tuple[str, str | None, bytes]]:
    """Field, file name and data of each part of a form."""
    message = BytesParser().parsebytes(b"content-type: " + sent.headers["content-type"].encode() + b"\n\n" + sent.body)
    found = []
    for part in message.get_payload():
        field = part.get_param("name", header="content-disposition")
        found.append((field, part.get_filename(), part.get_payload(decode=True)))
    return found


def test_push_of_a_folder_sends_an_adapters_files_and_nothing_else(fake: ScriptedServer, folder: Path) -> None:
    fake.answers = [Answer(201, VERSION)]
    done = run(fake, "push", str(folder), "--name", "tweets", "--alias", "canary", "--tag", "night", "--tag", "eu")
    assert done.exit_code == 0, done.output
    (sent,) = fake.sent
    assert (sent.method, sent.path) == ("POST", "/v1/adapters/tweets/versions")
    assert len(sent.headers["idempotency-key"]) == 32
    names = ["adapter_config.json", "card.md", "medley.json", "adapter_model.safetensors"]
    fields = [("alias", None, b"canary"), ("tags", None, b"night,eu")]
    assert parts(sent) == fields + [("files", name, (folder / name).read_bytes()) for name in names]
    assert all(fact in done.stdout for fact in ("tweets:2 is ready", "canary", DIGEST))
    assert done.stderr == ""


def test_push_finds_an_adapter_with_a_name_one_folder_down(fake: ScriptedServer, folder: Path) -> None:
    (folder / "default").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "default" / name)
    fake.answers = [Answer(201, VERSION)]
    assert run(fake, "push", str(folder), "--name", "tweets").exit_code == 0
    assert [name for _, name, _ in parts(fake.sent[0])] == ["adapter_config.json", "adapter_model.safetensors"]


def test_push_of_an_archive_sends_it_whole(fake: ScriptedServer, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "run.tar.gz", "w:gz") as archive:
        archive.add(folder, "run")
    fake.answers = [Answer(201, VERSION)]
    done = run(fake, "push", str(tmp_path / "run.tar.gz"), "--name", "tweets", "--json")
    assert json.loads(done.stdout) == VERSION
    assert parts(fake.sent[0]) == [("archive", "run.tar.gz", (tmp_path / "run.tar.gz").read_bytes())]


def test_push_of_a_source_sends_its_address(fake: ScriptedServer) -> None:
    fake.answers = [Answer(201, VERSION)]
    run(fake, "push", "hf://owner/repo@main", "--name", "tweets", "--tag", "eu")
    assert fake.sent[0].json() == {"source": "hf://owner/repo@main", "tags": ["eu"]}


def test_push_after_a_lost_answer_sends_the_whole_body_again(
    fake: ScriptedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.cli.client._WAITS_S", (0.0,))
    fake.answers = [Answer(0), Answer(201, VERSION)]
    assert run(fake, "push", str(folder), "--name", "tweets").exit_code == 0
    first, second = fake.sent
    assert parts(first) == parts(second)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_push_of_a_folder_without_an_adapter_fails_unsent(fake: ScriptedServer, folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    done = run(fake, "push", str(folder), "--name", "tweets")
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")
    assert missing in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("/nowhere", "--name", "a"), ("hf://owner/repo", "--name", "../a"), ("hf://owner/repo", "--name", "A")],
)
def test_push_of_what_cannot_be_fails_unsent(fake: ScriptedServer, arguments: tuple[str, ...]) -> None:
    done = run(fake, "push", *arguments)
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")


def test_push_shows_its_progress_on_a_terminal_only(
    fake: ScriptedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes the console take its stream for a terminal
    fake.answers = [Answer(201, VERSION)]
    done = run(fake, "push", str(folder), "--name", "tweets", "--json")
    assert json.loads(done.stdout) == VERSION
    assert "checking" in done.stderr


def test_list_shows_adapters_with_aliases_and_size(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body={"adapters": [ADAPTER, {"name": "empty", "versions": [], "aliases": {}}]})]
    done = run(fake, "list", "--tag", "eu")
    assert fake.sent[0].path == "/v1/adapters?tag=eu"
    for fact in ("tweets", "lora", "canary→2 stable→2", "2023-11-14", "1.23 MB", "eu night", "empty"):
        assert fact in done.stdout


def test_list_of_nothing_says_what_to_do(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body={"adapters": []})]
    assert "medley adapters push" in run(fake, "list").stdout


def test_show_adapter_shows_versions_newest_first(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body=ADAPTER)]
    done = run(fake, "show", "tweets")
    assert done.stdout.index("tweets:2") < done.stdout.index("tweets:1")
    assert "canary" in done.stdout
    assert "retired" in done.stdout


def test_show_version_shows_facts_and_card_and_obeys_neither(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body=VERSION), Answer(body="# Card\nmade \x1b]0;by\x07 us\n")]
    done = run(fake, "show", "tweets:2")
    assert [sent.path for sent in fake.sent] == [
        "/v1/adapters/tweets/versions/2",
        "/v1/adapters/tweets/versions/2/card",
    ]
    for fact in (DIGEST, "rouge1=31.5", "[red]of", "# Card\n", "Apache-2.0", "night eu", "bleu chrf"):
        assert fact in done.stdout
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout


@pytest.mark.parametrize("reference", ["tweets", "tweets:2"])
def test_show_as_json_is_one_document(fake: ScriptedServer, reference: str) -> None:
    fake.answers = [Answer(body=VERSION)]
    assert json.loads(run(fake, "show", reference, "--json").stdout) == VERSION


def test_promote_points_stable_or_another_alias(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body=ADAPTER)]
    assert run(fake, "promote", "tweets:2").stdout == "tweets@stable is tweets:2\n"
    assert run(fake, "promote", "tweets:2", "--alias", "canary").stdout == "tweets@canary is tweets:2\n"
    asked = [(sent.method, sent.path, sent.json()) for sent in fake.sent]
    assert asked == [("PUT", f"/v1/adapters/tweets/aliases/{alias}", {"version": 2}) for alias in ("stable", "canary")]


def test_rollback_names_where_the_alias_points_now(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body=ADAPTER)]
    assert run(fake, "rollback", "tweets", "--alias", "canary").stdout == "tweets@canary is tweets:2\n"
    (sent,) = fake.sent
    assert (sent.method, sent.path, sent.json()) == ("POST", "/v1/adapters/tweets/rollback", {"alias": "canary"})


def test_rm_deletes_one_version_with_force_only_when_asked(fake: ScriptedServer) -> None:
    fake.answers = [Answer(body=ADAPTER)]
    assert run(fake, "rm", "tweets:1").stdout == "tweets:1 is deleted\n"
    run(fake, "rm", "tweets:1", "--force")
    assert [(sent.method, sent.path) for sent in fake.sent] == [
        ("DELETE", "/v1/adapters/tweets/versions/1"),
        ("DELETE", "/v1/adapters/tweets/versions/1?force=true"),
    ]


@pytest.mark.parametrize(
    "arguments", [("promote", "tweets"), ("rm", "tweets@stable"), ("rm", "a/b:1"), ("show", "a@b")]
)
def test_what_is_not_one_version_fails_unsent(fake: ScriptedServer, arguments: tuple[str, ...]) -> None:
    done = run(fake, *arguments)
    assert (done.exit_code, fake.sent) == (1, [])
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")


@pytest.mark.parametrize(("arguments", "path"), [((), "/v1/audit"), (("tweets",), "/v1/adapters/tweets/audit")])
def test_audit_shows_who_changed_what(fake: ScriptedServer, arguments: tuple[str, ...], path: str) -> None:
    fake.answers = [Answer(body={"records": [CHANGE]})]
    done = run(fake, "audit", *arguments, "--limit", "7")
    assert fake.sent[0].path == f"{path}?limit=7"
    for fact in ("key:3f9a", "10.0.0.7", "set_alias", "tweets:2", "stable", "was 1"):
        assert fact in done.stdout
