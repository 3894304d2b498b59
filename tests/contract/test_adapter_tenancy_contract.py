"""Two tenants and a few narrower keys on one server: what each sees, may do and can find out, over HTTP and gRPC."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from adapters.registry import Change
from server.access.keys import KeyRing
from server.core.principal import Scope
from tests.fixtures.front_end_clients import Call, Refused
from tests.fixtures.lifecycle_clients import GrpcLifecycle, HttpLifecycle, Labels, LifecycleClient
from tests.fixtures.peft_files import lora_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOTH = frozenset({Scope.INFER, Scope.OPERATE})
KEYS: Mapping[str, tuple[frozenset[Scope], tuple[str, ...]]] = {
    "red": (BOTH, ("red-*",)),
    "blue": (BOTH, ("blue-*",)),
    "admin": (frozenset({Scope.ADMIN}), ("*",)),
    "reader": (frozenset({Scope.READ}), ("red-*",)),
    "user": (frozenset({Scope.INFER}), ("red-*",)),
}
Clients = Mapping[str, LifecycleClient]


@dataclass(frozen=True)
class Tenants:
    """A server, and a token of each key by its name."""

    server: RunningServer
    tokens: Mapping[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    data_dir = tmp_path_factory.mktemp("tenants")
    ring = KeyRing(f"sqlite:///{data_dir / 'registry.db'}")
    tokens = {
        name: ring.create(name, scopes=scopes, patterns=patterns, change=Change("test"))[0]
        for name, (scopes, patterns) in KEYS.items()
    }
    ring.close()
    async with running_server(data_dir, fake_engine()) as server:
        yield Tenants(server, tokens)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[HttpLifecycle, GrpcLifecycle], ids=["http", "grpc"]
)
async def clients(tenants: Tenants, request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    tokens = {**tenants.tokens, "nobody": "", "forger": tenants.tokens["red"] + "x"}
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(request.param(tenants.server, token))
            for name, token in tokens.items()
        }
        await clients["red"].push("red-a", lora_files(1), Labels("stable", ["shared"]))
        await clients["blue"].push("blue-a", lora_files(2), Labels("stable", ["shared"]))
        yield clients


async def _refusal(refused: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as caught:
        await refused
    return caught.value


Ask = Callable[[LifecycleClient, str], Awaitable[object]]
READS: dict[str, Ask] = {
    "show": lambda client, name: client.adapter(name),
    "card": lambda client, name: client.card(name, 1),
    "audit": lambda client, name: client.audit(name),
}
CHANGES: dict[str, Ask] = {
    "promote": lambda client, name: client.set_alias(name, "stable", 1),
    "unalias": lambda client, name: client.delete_alias(name, "stable"),
    "rollback": lambda client, name: client.rollback(name),
    "delete": lambda client, name: client.delete(name, 1),
    "force-delete": lambda client, name: client.delete(name, 1, force=True),
    "label": lambda client, name: client.label(name, 1, tags=["mine"]),
}
UPLOADS: dict[str, Ask] = {
    "files": lambda client, name: client.push(name, lora_files(3)),
    "archive": lambda client, name: client.push_archive(name, b"x"),
    "source": lambda client, name: client.push_source(name, "hf://owner/repo"),
}
INFERENCE: dict[str, Ask] = {
    "summarize": lambda client, name: client.summarize(Call(adapters=[name])),
    "generate": lambda client, name: client.generate(Call(adapters=[f"{name}:1"])),
    "with-own": lambda client, name: client.summarize(Call(adapters=["red-a", f"{name}@stable"])),
}
ALL = READS | CHANGES | UPLOADS | INFERENCE


class TestTenants:
    @pytest.mark.parametrize("ask", READS | CHANGES | INFERENCE)
    async def test_foreign_name_is_answered_as_one_that_nobody_has(self, clients: Clients, ask: str) -> None:
        call = ALL[ask]
        foreign, unknown = [await _refusal(call(clients["red"], name)) for name in ("blue-a", "red-z")]
        assert foreign.code == unknown.code == "NOT_FOUND"
        assert foreign.message.replace("blue-a", "red-z") == unknown.message
        assert (foreign.status, foreign.param) == (unknown.status, unknown.param)

    @pytest.mark.parametrize("ask", UPLOADS)
    async def test_upload_to_a_foreign_name_is_refused_whether_it_exists_or_not(
        self, clients: Clients, ask: str
    ) -> None:
        taken, free = [await _refusal(UPLOADS[ask](clients["red"], name)) for name in ("blue-a", "blue-z")]
        assert taken.code == free.code == "PERMISSION_DENIED"
        assert taken.message == free.message

    async def test_nothing_of_a_tenant_changes_by_what_another_tried(self, clients: Clients) -> None:
        before = await clients["blue"].adapter("blue-a")
        for ask in (CHANGES | UPLOADS).values():
            await _refusal(ask(clients["red"], "blue-a"))
        assert await clients["blue"].adapter("blue-a") == before

    async def test_lists_have_the_own_names_only(self, clients: Clients) -> None:
        for tenant in ("red", "blue"):
            client = clients[tenant]
            names = [adapter["name"] for adapter in await client.adapters()]
            assert f"{tenant}-a" in names
            assert all(name.startswith(f"{tenant}-") for name in names)
            assert await client.tagged("shared") == [f"{tenant}-a"]
        assert await clients["admin"].tagged("shared") == ["blue-a", "red-a"]

    async def test_audit_tells_who_with_which_key(self, clients: Clients) -> None:
        newest = (await clients["red"].audit("red-a"))[0]
        assert newest["who"].startswith("key:")
        names = {record["name"] for record in await clients["admin"].audit()}
        assert {"red-a", "blue-a"} <= names

    async def test_references_reach_only_the_own_requests(self, clients: Clients) -> None:
        answer = await clients["red"].summarize(Call(adapters=["red-a"]))
        foreign = await _refusal(clients["blue"].submit_references(answer.request_id, ["x"]))
        unknown = await _refusal(clients["blue"].submit_references("never-seen", ["x"]))
        assert (foreign.code, foreign.message) == (unknown.code, unknown.message)
        assert unknown.code == "NOT_FOUND"
        assert await clients["red"].submit_references(answer.request_id, [answer.text])

    async def test_evaluations_have_the_own_names_only(self, clients: Clients) -> None:
        await clients["red"].summarize(Call(adapters=["red-a"], references=["one two three"]))
        assert "red-a:1" in await clients["red"].evaluations()
        assert "red-a:1" not in await clients["blue"].evaluations()

    async def test_idempotency_key_is_each_tenants_own(self, clients: Clients) -> None:
        key = f"same-key-{clients['red'].name}"
        for tenant in ("red", "blue"):
            version = await clients[tenant].push(f"{tenant}-key", lora_files(4), Labels(key=key))
            assert version["name"] == f"{tenant}-key"
            await clients[tenant].delete(f"{tenant}-key", version["version"])


class TestScopes:
    @pytest.mark.parametrize("ask", ALL)
    async def test_call_without_a_good_key_is_unauthenticated(self, clients: Clients, ask: str) -> None:
        for caller in ("nobody", "forger"):
            assert (await _refusal(ALL[ask](clients[caller], "red-a"))).code == "UNAUTHENTICATED"

    @pytest.mark.parametrize("ask", CHANGES | UPLOADS | INFERENCE)
    async def test_reader_only_reads(self, clients: Clients, ask: str) -> None:
        assert (await clients["reader"].adapter("red-a"))["name"] == "red-a"
        assert (await _refusal(ALL[ask](clients["reader"], "red-a"))).code == "PERMISSION_DENIED"

    @pytest.mark.parametrize("ask", READS | CHANGES | UPLOADS)
    async def test_user_only_infers(self, clients: Clients, ask: str) -> None:
        assert (await clients["user"].summarize(Call(adapters=["red-a"]))).adapters
        assert (await _refusal(ALL[ask](clients["user"], "red-a"))).code == "PERMISSION_DENIED"
