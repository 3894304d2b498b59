"""``medley keys`` on a real database: what a server with the same settings would find there."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.registry import Registry
from server.access.keys import ApiKey, KeyRing
from server.cli import app
from server.core.errors import UnauthenticatedError
from server.core.principal import Scope


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that no server has used yet."""
    return tmp_path / "data"


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(data_dir)])


@contextmanager
def ring(data_dir: Path) -> Iterator[KeyRing]:
    with closing(KeyRing(f"sqlite:///{data_dir / 'registry.db'}")) as opened:
        yield opened


def authenticate(data_dir: Path, token: str) -> ApiKey:
    with ring(data_dir) as keys:
        return keys.authenticate(token)


def test_create_prints_a_token_that_works_and_only_that(data_dir: Path) -> None:
    done = run(data_dir, "create", "--name", "batch jobs", "--scope", "infer", "--scope", "operate")
    assert done.exit_code == 0, done.output
    token = done.stdout.removesuffix("\n")
    key = authenticate(data_dir, token)
    assert (key.name, key.scopes, key.patterns) == ("batch jobs", {Scope.INFER, Scope.OPERATE}, ("*",))
    assert (key.max_requests_per_minute, key.max_concurrent, key.expires_s) == (0, 0, None)
    assert "this once" in done.stderr
    assert token not in done.stderr


def test_first_key_is_said_to_close_the_server(data_dir: Path) -> None:
    first, second = (run(data_dir, "create", "--name", name, "--scope", "infer") for name in ("a", "b"))
    assert "every call" in first.stderr
    assert "every call" not in second.stderr


@pytest.mark.parametrize(("expires_in", "seconds"), [("90m", 5400), ("12h", 43200), ("30d", 2_592_000)])
def test_create_keeps_patterns_limits_and_expiry(data_dir: Path, expires_in: str, seconds: int) -> None:
    done = run(
        data_dir,
        *("create", "--name", "a", "--scope", "infer", "--adapters", "team-a-*", "--adapters", "shared"),
        *("--max-requests-per-minute", "60", "--max-concurrent", "4", "--first-priority", "-1"),
        *("--expires-in", expires_in, "--json"),
    )
    document = json.loads(done.stdout)
    key = authenticate(data_dir, document["token"])
    assert (key.patterns, key.max_requests_per_minute, key.max_concurrent) == (("team-a-*", "shared"), 60, 4)
    assert key.first_priority == -1
    assert key.expires_s == pytest.approx(time.time() + seconds, abs=60)
    assert (document["key"]["key_id"], document["key"]["state"]) == (key.key_id, "valid")
    assert document["token"] not in json.dumps(document["key"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--expires-in", "soon"),
        ("--expires-in", "0d"),
        ("--adapters", "Team A"),
        ("--name", "two\nlines"),
    ],
)
def test_create_with_a_bad_argument_fails_and_makes_none(data_dir: Path, arguments: tuple[str, ...]) -> None:
    done = run(data_dir, "create", "--name", "a", "--scope", "infer", *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("medley: INVALID_ARGUMENT: ")
    with ring(data_dir) as keys:
        assert not keys.any_keys


def test_create_needs_a_known_scope(data_dir: Path) -> None:
    assert run(data_dir, "create", "--name", "a").exit_code == 2
    assert run(data_dir, "create", "--name", "a", "--scope", "root").exit_code == 2


def test_revoked_key_is_refused_and_stays_in_the_list(data_dir: Path) -> None:
    token = run(data_dir, "create", "--name", "leaked", "--scope", "infer").stdout.strip()
    run(data_dir, "create", "--name", "kept", "--scope", "read", "--expires-in", "1d")
    key_id = authenticate(data_dir, token).key_id
    assert run(data_dir, "revoke", key_id).stdout == f"key {key_id} (leaked) is revoked\n"
    with pytest.raises(UnauthenticatedError):
        authenticate(data_dir, token)
    listed = json.loads(run(data_dir, "list", "--json").stdout)["keys"]
    assert [(key["name"], key["state"]) for key in listed] == [("leaked", "revoked"), ("kept", "valid")]
    table = run(data_dir, "list").stdout
    assert all(fact in table for fact in (key_id, "leaked", "revoked", "kept", "valid", "read", "never"))
    assert token.rpartition("_")[2] not in table + json.dumps(listed)


def test_database_elsewhere_is_found_by_option_environment_or_file(tmp_path: Path, data_dir: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    (tmp_path / "medley.toml").write_text(f'[registry]\nurl = "{url}"\n')
    command = ["keys", "list", "--json", "--data-dir", str(data_dir)]
    made = CliRunner().invoke(app, ["keys", "create", "--name", "a", "--scope", "read", "--registry-url", url])
    assert made.exit_code == 0
    found = [
        CliRunner().invoke(app, [*command, "--registry-url", url]),
        CliRunner().invoke(app, [*command, "--config", str(tmp_path / "medley.toml")]),
        CliRunner().invoke(app, command, env={"MEDLEY_REGISTRY__URL": url}),
    ]
    assert [len(json.loads(done.stdout)["keys"]) for done in found] == [1, 1, 1]
    assert not data_dir.exists()


def test_list_of_nothing_says_what_to_do(data_dir: Path) -> None:
    assert "medley keys create" in run(data_dir, "list").stdout


def test_revoke_of_an_unknown_key_fails(data_dir: Path) -> None:
    done = run(data_dir, "revoke", "nobody")
    assert (done.exit_code, done.stderr) == (1, "medley: NOT_FOUND: there is no such key\n")


def test_changes_are_in_the_audit_log_under_the_systems_user(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    run(data_dir, "create", "--name", "a", "--scope", "infer")
    with closing(Registry(f"sqlite:///{data_dir / 'registry.db'}")) as registry:
        (record,) = registry.audit()
    assert (record.who, record.action) == ("cli:ada", "create_key")


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name"])
def test_database_that_cannot_be_used_fails_in_one_line(tmp_path: Path, url: str) -> None:
    (tmp_path / "file").write_text("in the way of a data directory")
    done = run(tmp_path / "file", "list", *(["--registry-url", url] if url else []))
    assert done.exit_code == 1
    assert done.stderr.startswith("medley: UNAVAILABLE: ")
    assert done.stderr.count("\n") == 1
