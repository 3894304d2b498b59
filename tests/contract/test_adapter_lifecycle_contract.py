"""The whole life of an adapter, one suite over HTTP and gRPC, on a whole server with the fake engine."""

import asyncio
import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import pytest_asyncio

from server.service.adapters import CatalogConfig
from tests.fixtures.front_end_clients import Call, Refused
from tests.fixtures.lifecycle_clients import GrpcLifecycle, HttpLifecycle, Labels, LifecycleClient
from tests.fixtures.peft_files import Files, lora_files, with_nan
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINE = fake_engine(step_time_s=0.005, max_num_seqs=2, max_num_waiting=4, max_model_len=600)
CARD = "# A card\n\nLearned from nothing. Licence: MIT."


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> AsyncIterator[RunningServer]:
    catalog = CatalogConfig(allowed_sources=(f"file://{sources}/",))
    async with running_server(tmp_path_factory.mktemp("server"), ENGINE, catalog=catalog) as running:
        yield running


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[HttpLifecycle, GrpcLifecycle], ids=["http", "grpc"]
)
async def client(server: RunningServer, request: pytest.FixtureRequest) -> AsyncIterator[LifecycleClient]:
    async with request.param(server) as client:
        yield client


@pytest.fixture
def name(client: LifecycleClient, request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    test = request.node.originalname.removeprefix("test_").replace("_", "-")[:40].strip("-")
    return f"{test}-{client.name}-{crc32(request.node.name.encode()):x}"


async def refusal(refused: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as caught:
        await refused
    return caught.value


async def _three_versions(client: LifecycleClient, name: str, alias: str = "stable") -> None:
    for seed in (1, 2, 3):
        await client.push(name, lora_files(seed), Labels(alias=alias))


def _tar(files: Files, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for file_name, data in files.items():
            member = tarfile.TarInfo(f"folder/{file_name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _zip(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file_name, data in files.items():
            archive.writestr(file_name, data)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[Files], bytes]] = {
    "tar": _tar,
    "tar-gz": lambda files: _tar(files, "w:gz"),
    "zip": _zip,
}


class TestUploads:
    @pytest.mark.parametrize("kind", ARCHIVES)
    async def test_archive_gives_what_its_files_give(self, client: LifecycleClient, name: str, kind: str) -> None:
        files = lora_files(seed=11) | {"card.md": CARD.encode()}
        version = await client.push_archive(name, ARCHIVES[kind](files), Labels("stable", ["one", "two"]))
        assert (version["version"], version["state"], version["tags"]) == (1, "ready", ["one", "two"])
        assert (await client.push(name, files))["digest"] == version["digest"]
        adapter = await client.adapter(name)
        assert adapter["aliases"] == {"stable": 1}
        assert len(adapter["versions"]) == 1
        assert (await client.summarize(Call(adapters=[name]))).adapters[0][:2] == (name, 1)

    async def test_source_gives_what_its_files_give(self, client: LifecycleClient, name: str, sources: Path) -> None:
        files = lora_files(seed=12)
        folder = sources / name
        folder.mkdir()
        for file_name, data in files.items():
            (folder / file_name).write_bytes(data)
        version = await client.push_source(name, f"file://{folder}", Labels("canary", ["fetched"]))
        assert (version["version"], version["tags"]) == (1, ["fetched"])
        assert (await client.adapter(name))["aliases"] == {"canary": 1}
        assert (await client.push(name, files))["digest"] == version["digest"]

    @pytest.mark.parametrize(
        ("source", "code"),
        [
            ("file:///etc", "PERMISSION_DENIED"),
            ("hf://owner/repo", "PERMISSION_DENIED"),
            ("http://127.0.0.1/", "PERMISSION_DENIED"),
        ],
    )
    async def test_source_that_is_not_allowed_is_refused(
        self, client: LifecycleClient, name: str, source: str, code: str
    ) -> None:
        assert (await refusal(client.push_source(name, source))).code == code
        assert (await refusal(client.adapter(name))).code == "NOT_FOUND"

    @pytest.mark.parametrize("data", [b"", b"no archive", _tar({"evil.pkl": b"x"}), _tar(lora_files())[:700]])
    async def test_bad_archive_is_refused_and_leaves_nothing(
        self, client: LifecycleClient, name: str, data: bytes
    ) -> None:
        assert (await refusal(client.push_archive(name, data))).code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}
        assert (await refusal(client.adapter(name))).code == "NOT_FOUND"

    async def test_refused_version_leaves_the_others_as_they_were(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1), Labels("stable"))
        before = await client.adapter(name)
        refused = await refusal(client.push(name, with_nan(lora_files(2)), Labels("stable")))
        assert refused.code == "INVALID_ARGUMENT"
        assert await client.adapter(name) == before

    async def test_card_comes_back_as_it_was(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(seed=13) | {"card.md": CARD.encode()})
        assert await client.card(name, 1) == CARD
        assert (await refusal(client.card(name, 2))).code == "NOT_FOUND"

    async def test_version_without_a_card_has_an_empty_one(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(seed=13))
        assert await client.card(name, 1) == ""


class TestIdempotencyKeys:
    async def test_upload_again_gives_the_first_answer(self, client: LifecycleClient, name: str) -> None:
        labels = Labels("stable", ["first"], key=f"{name}-1")
        first = await client.push(name, lora_files(1), labels)
        await client.push(name, lora_files(2), Labels("stable"))
        assert await client.push(name, lora_files(1), labels) == first
        # An alias that someone moved since stays where it is.
        assert (await client.adapter(name))["aliases"] == {"stable": 2}

    async def test_key_of_another_change_is_a_conflict(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1), Labels(key=f"{name}-1"))
        refused = await refusal(client.push(name, lora_files(2), Labels(key=f"{name}-1")))
        assert refused.code == "ALREADY_EXISTS"
        assert (await refusal(client.set_alias(name, "stable", 1, key=f"{name}-1"))).code == "ALREADY_EXISTS"
        assert len((await client.adapter(name))["versions"]) == 1

    async def test_rollback_again_does_not_go_further_back(self, client: LifecycleClient, name: str) -> None:
        await _three_versions(client, name)
        for _ in range(3):
            assert (await client.rollback(name, key=f"{name}-back"))["aliases"] == {"stable": 2}
        assert (await client.adapter(name))["aliases"] == {"stable": 2}

    async def test_every_change_takes_a_key(self, client: LifecycleClient, name: str) -> None:
        await _three_versions(client, name)
        changes: list[Callable[[], Awaitable[Any]]] = [
            lambda: client.set_alias(name, "canary", 1, key=f"{name}-set"),
            lambda: client.label(name, 1, tags=["x"], key=f"{name}-label"),
            lambda: client.delete_alias(name, "canary", key=f"{name}-unset"),
            lambda: client.delete(name, 1, key=f"{name}-delete"),
        ]
        for change in changes:
            first = await change()
            rows = len(await client.audit(name))
            assert await change() == first
            assert len(await client.audit(name)) == rows

    @pytest.mark.parametrize("key", ["x" * 129])
    async def test_bad_key_is_refused(self, client: LifecycleClient, name: str, key: str) -> None:
        assert (await refusal(client.push(name, lora_files(1), Labels(key=key)))).code == "INVALID_ARGUMENT"
        assert (await refusal(client.adapter(name))).code == "NOT_FOUND"


class TestAliases:
    async def test_promotion_moves_new_requests(self, client: LifecycleClient, name: str) -> None:
        await _three_versions(client, name)
        adapter = await client.set_alias(name, "stable", 1)
        assert adapter["aliases"] == {"stable": 1}
        assert (await client.summarize(Call(adapters=[name]))).adapters[0][1] == 1

    async def test_two_rollbacks_go_two_back_and_a_third_has_nowhere_to_go(
        self, client: LifecycleClient, name: str
    ) -> None:
        await _three_versions(client, name)
        assert (await client.rollback(name))["aliases"] == {"stable": 2}
        assert (await client.rollback(name))["aliases"] == {"stable": 1}
        assert (await refusal(client.rollback(name))).code == "FAILED_PRECONDITION"
        assert (await client.adapter(name))["aliases"] == {"stable": 1}

    async def test_deleted_alias_is_gone(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1), Labels("canary"))
        assert (await client.delete_alias(name, "canary"))["aliases"] == {}
        assert (await refusal(client.delete_alias(name, "canary"))).code == "NOT_FOUND"
        assert (await refusal(client.summarize(Call(adapters=[f"{name}@canary"])))).code == "NOT_FOUND"

    @pytest.mark.parametrize("alias", ["../x", "UPPER", "x" * 64])
    async def test_bad_alias_is_refused(self, client: LifecycleClient, name: str, alias: str) -> None:
        await client.push(name, lora_files(1))
        assert (await refusal(client.set_alias(name, alias, 1))).code in {"INVALID_ARGUMENT", "NOT_FOUND"}
        assert (await client.adapter(name))["aliases"] == {}

    async def test_what_is_not_there_cannot_be_pointed_at(self, client: LifecycleClient, name: str) -> None:
        assert (await refusal(client.set_alias(name, "stable", 1))).code == "NOT_FOUND"
        await client.push(name, lora_files(1))
        assert (await refusal(client.set_alias(name, "stable", 2))).code == "NOT_FOUND"
        assert (await refusal(client.rollback(name, "nowhere"))).code in {"NOT_FOUND", "FAILED_PRECONDITION"}


class TestDeletion:
    async def test_version_an_alias_points_at_stays_unless_forced(self, client: LifecycleClient, name: str) -> None:
        await _three_versions(client, name)
        assert (await refusal(client.delete(name, 3))).code == "FAILED_PRECONDITION"
        adapter = await client.delete(name, 3, force=True)
        assert adapter["aliases"] == {}
        assert [version["state"] for version in adapter["versions"]] == ["ready", "ready", "retired"]
        assert (await refusal(client.summarize(Call(adapters=[f"{name}:3"])))).code == "FAILED_PRECONDITION"

    async def test_version_of_a_running_request_stays_unless_forced(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1))
        text = "long " * 60
        stream = client.stream(Call(text=text, adapters=[f"{name}:1"], sampling={"max_new_tokens": 200}))
        async with aclosing(stream):  # type: ignore[type-var]
            await anext(stream)
            assert (await refusal(client.delete(name, 1))).code == "FAILED_PRECONDITION"
            forced = asyncio.create_task(client.delete(name, 1, force=True))
            pieces = [piece async for piece in stream]
        assert len(pieces) > 50
        assert (await forced)["versions"][0]["state"] == "retired"

    async def test_number_of_a_deleted_version_is_not_used_again(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1))
        await client.delete(name, 1)
        assert (await client.push(name, lora_files(1)))["version"] == 2

    async def test_deleted_version_says_who_and_stays_listed(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1))
        version = (await client.delete(name, 1))["versions"][0]
        assert "anonymous" in version["reason"]
        assert (await client.adapter(name))["versions"] == [version]

    async def test_deleting_what_is_not_there_is_not_found(self, client: LifecycleClient, name: str) -> None:
        assert (await refusal(client.delete(name, 1))).code == "NOT_FOUND"
        await client.push(name, lora_files(1))
        assert (await refusal(client.delete(name, 2, force=True))).code == "NOT_FOUND"


class TestLabels:
    async def test_tags_and_description_change_apart(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1), Labels(tags=["old"]))
        version = await client.label(name, 1, description="Better words.")
        assert (version["description"], version["tags"]) == ("Better words.", ["old"])
        version = await client.label(name, 1, tags=["b", "a", "b"])
        assert (version["description"], version["tags"]) == ("Better words.", ["a", "b"])
        assert (await client.label(name, 1, tags=[]))["tags"] == []

    async def test_adapters_are_listed_by_tag(self, client: LifecycleClient, name: str) -> None:
        tag = f"tag-{client.name}"
        await client.push(name, lora_files(1), Labels(tags=[tag, "other"]))
        assert await client.tagged(tag) == [name]
        assert name in await client.tagged("")
        await client.delete(name, 1)
        assert await client.tagged(tag) == []

    @pytest.mark.parametrize("tags", [["Bad Tag"], ["x" * 64], [f"t{number}" for number in range(33)]])
    async def test_bad_tags_are_refused(self, client: LifecycleClient, name: str, tags: list[str]) -> None:
        assert (await refusal(client.push(name, lora_files(1), Labels(tags=tags)))).code == "INVALID_ARGUMENT"
        assert (await refusal(client.adapter(name))).code == "NOT_FOUND"
        await client.push(name, lora_files(1))
        assert (await refusal(client.label(name, 1, tags=tags))).code == "INVALID_ARGUMENT"


class TestAudit:
    async def test_every_change_is_told_newest_first(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1), Labels("stable"))
        version = await client.push(name, lora_files(2))
        await client.set_alias(name, "stable", 2)
        await client.rollback(name)
        await client.label(name, 2, tags=["x"])
        await client.delete_alias(name, "stable")
        await client.delete(name, 2)
        records = await client.audit(name)
        actions = [record["action"] for record in records]
        assert actions == ["retire", "delete_alias", "label", "rollback", "set_alias", "upload", "upload"]
        assert {record["who"] for record in records} == {"anonymous"}
        assert {record["origin"] for record in records} == {"127.0.0.1"}
        assert (records[0]["version"], records[0]["digest"]) == (2, version["digest"])
        assert (records[4]["version"], records[4]["alias"]) == (2, "stable")
        assert sorted(record["time_s"] for record in records) == [record["time_s"] for record in reversed(records)]

    async def test_log_of_all_adapters_has_this_one_too(self, client: LifecycleClient, name: str) -> None:
        await client.push(name, lora_files(1))
        newest = (await client.audit(limit=1))[0]
        assert (newest["action"], newest["name"]) == ("upload", name)
        assert len(await client.audit(limit=3)) == 3

    async def test_unknown_name_has_no_log(self, client: LifecycleClient, name: str) -> None:
        assert (await refusal(client.audit(name))).code == "NOT_FOUND"

    @pytest.mark.parametrize("limit", [0, -1, 1001])
    async def test_bad_limit_is_refused(self, client: LifecycleClient, limit: int) -> None:
        assert (await refusal(client.audit(limit=limit))).code == "INVALID_ARGUMENT"


NAMES = ["../../etc/passwd", "a/b", "UPPER", "a..b", ".a", "-", "", " ", "x" * 64, "a\0b", "a\nb", "ü", "a:1", "a@b"]


@pytest.mark.parametrize("hostile", NAMES, ids=ascii)
async def test_hostile_name_is_refused_by_every_method(client: LifecycleClient, hostile: str) -> None:
    for asked in (
        client.push(hostile, lora_files(1)),
        client.push_archive(hostile, _tar(lora_files(1))),
        client.push_source(hostile, "file:///x"),
        client.card(hostile, 1),
        client.set_alias(hostile, "stable", 1),
        client.delete_alias(hostile, "stable"),
        client.rollback(hostile),
        client.delete(hostile, 1, force=True),
        client.label(hostile, 1, tags=[]),
    ):
        assert (await refusal(asked)).code in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert hostile not in [adapter["name"] for adapter in await client.adapters()]
