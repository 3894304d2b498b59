"""Generated calls, sound and unsound, of every HTTP route by its own OpenAPI document, with keys and without.

No answer is a 5xx, none has a status, content type or body that the document does not promise, and the server lives.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import Failure, FailureGroup

from adapters.registry_records import Change
from server.access.keys import KeyRing
from server.core.principal import Scope
from tests.fixtures.lifecycle_clients import HttpLifecycle, Labels
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.server_process import ServerProcess

load_all_checks()
# Lines of rows: any text, which is all that their schema says.
for lines in ("application/jsonl", "application/x-ndjson", "application/x-jsonlines"):
    schemathesis.serializer.alias(lines, "text/plain")

from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def no_fault_of_the_server(_context: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """A check: no 5xx, but for a call that ran out of the time it gave itself."""
    is_own_deadline = response.status_code == 504 and "x-deadline-ms" in {key.lower() for key in case.headers}
    assert response.status_code < 500 or is_own_deadline, response.text


CHECKS = [no_fault_of_the_server, status_code_conformance, content_type_conformance, response_schema_conformance]
FUZZ = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking calls takes minutes, and the failures name short ones
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without keys and with two adapters, that fetches from nowhere."""
    server = ServerProcess(tmp_path_factory.mktemp("server"), {"catalog": {"allowed_sources": []}})
    try:
        asyncio.run(_fill(server))
        yield server
        assert server.is_running()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, str]]:
    """The same with a key that may do everything."""
    server = ServerProcess(tmp_path_factory.mktemp("guarded"), {"catalog": {"allowed_sources": []}})
    try:
        asyncio.run(_fill(server))
        yield server, _key_for(server)
        assert server.is_running()
    finally:
        server.kill()


async def _fill(server: ServerProcess) -> None:
    await server.start()
    async with HttpLifecycle(server) as client:
        await client.push("lora", lora_files(), Labels(alias="stable", tags=["good"]))
        await client.push("prompt", prompt_files(), Labels(alias="canary"))


def _key_for(server: ServerProcess) -> str:
    database = next(server.data_dir.glob("*.db"))
    with closing(KeyRing(f"sqlite:///{database}")) as ring:
        token, _ = ring.create("fuzz", scopes=frozenset(Scope), change=Change(who="test"))
    until_s = time.monotonic() + 10
    while httpx.get(f"{server.http}/v1/adapters", timeout=60).status_code != 401:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    return token


def _operations(server: ServerProcess, token: str = "") -> list[schemathesis.APIOperation]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_url(f"{server.http}/openapi.json", headers=headers)
    return [found.ok() for found in schema.get_all_operations()]


def _fuzz(operations: list[schemathesis.APIOperation], call: Callable[[schemathesis.Case], None]) -> None:
    """Call every operation, as its schema has it and otherwise; fails with what each of them did wrong."""
    wrong: dict[str, str] = {}
    for operation in operations:
        for mode in GenerationMode:
            calls = FUZZ(given(case=operation.as_strategy(generation_mode=mode))(call))
            try:
                calls()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.label  # nothing in such a call can be wrong
            except (FailureGroup, Failure, AssertionError) as failure:
                wrong[f"{operation.label}, {mode.value}"] = str(failure)
    assert not wrong, "\n\n".join(f"{label}: {failure}" for label, failure in wrong.items())


def test_calls_of_an_open_server_are_answered_as_documented(server: ServerProcess) -> None:
    def call(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=20)

    _fuzz(_operations(server), call)


def test_calls_with_a_key_are_answered_as_documented(guarded: tuple[ServerProcess, str]) -> None:
    def call(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {guarded[1]}"}, timeout=20)

    _fuzz(_operations(*guarded), call)


def test_calls_without_a_key_are_refused_as_documented(guarded: tuple[ServerProcess, str]) -> None:
    def call(case: schemathesis.Case) -> None:
        case.headers.pop("authorization", None)
        answer = case.call(timeout=20)
        case.validate_response(answer, checks=CHECKS)
        # What cannot be read as a call at all, or has no usable id, is told so before it is asked who it is.
        assert answer.status_code in (400, 401) or case.path in ("/healthz", "/readyz")

    _fuzz(_operations(*guarded), call)


def test_document_names_every_route(server: ServerProcess) -> None:
    paths = httpx.get(f"{server.http}/openapi.json", timeout=60).json()["paths"]
    assert {"/v1/summarize", "/v1/adapters/{name}/versions", "/v1/audit", "/v1/load_lora_adapter"} <= set(paths)
