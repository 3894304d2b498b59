"""What every front end promises, one suite over HTTP and gRPC, on a whole server with the fake engine.

The fake engine says the prompt itself, one byte a step, rotated by the adapters' digests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from adapters.manifest import MANIFEST_FILE
from server.service.health import Phase
from server.service.inference import InferenceConfig
from tests.fixtures.front_end_clients import Answer, Call, FrontEndClient, GrpcClient, HttpClient, Refused
from tests.fixtures.peft_files import (
    CONFIG,
    WEIGHTS,
    Files,
    for_another_base,
    ia3_files,
    lora_files,
    norm_files,
    prefix_files,
    prompt_files,
    with_nan,
)
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP_S = 0.002
ENGINE = fake_engine(step_time_s=STEP_S, max_num_seqs=2, max_num_waiting=4, max_model_len=600)
LONG = Call(text="long " * 100, sampling={"max_new_tokens": 256})
SCORES = {"rouge1", "rouge2", "rougeL", "rougeLsum"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    # The scorer is a process that gives way to all others; here an answer waits for it.
    inference = InferenceConfig(score_wait_s=20.0)
    async with running_server(tmp_path_factory.mktemp("server"), ENGINE, inference=inference) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[HttpClient, GrpcClient], ids=["http", "grpc"])
async def client(server: RunningServer, request: pytest.FixtureRequest) -> AsyncIterator[FrontEndClient]:
    async with request.param(server) as client:
        await client.upload("lora", lora_files(seed=1))
        await client.upload("prompt", prompt_files(seed=2))
        yield client


async def _drained(pieces: AsyncIterator[str | Answer]) -> tuple[list[str], Answer]:
    async with aclosing(pieces):  # type: ignore[type-var]
        got = [piece async for piece in pieces]
    answers = [piece for piece in got if isinstance(piece, Answer)]
    assert len(answers) == 1
    assert got[-1] is answers[0]
    return [piece for piece in got if isinstance(piece, str)], answers[0]


async def _refusal(refused: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await refused
    return caught.value


async def _still_serves(client: FrontEndClient) -> None:
    assert (await client.summarize(Call())).text == "one two three"


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(STEP_S)


@asynccontextmanager
async def _streaming(client: FrontEndClient, calls: int) -> AsyncIterator[None]:
    """Long streams that have begun to answer."""
    async with AsyncExitStack() as stack:
        for _ in range(calls):
            stream = client.stream(LONG)
            await stack.enter_async_context(aclosing(stream))  # type: ignore[type-var]
            await anext(stream)
        yield


class TestAnswers:
    async def test_summary_without_adapters_has_every_part(self, client: FrontEndClient) -> None:
        answer = await client.summarize(Call())
        assert (answer.text, answer.finish_reason, answer.adapters) == ("one two three", "stop", [])
        assert answer.usage == (14, 13)
        queue_ms, ttft_ms, e2e_ms = answer.timings_ms
        assert 0 <= queue_ms <= ttft_ms <= e2e_ms
        assert answer.scores == {}

    async def test_streamed_summary_adds_up_to_the_whole_one(self, client: FrontEndClient) -> None:
        pieces, last = await _drained(client.stream(Call()))
        whole = await client.summarize(Call())
        assert len(pieces) > 1
        assert "".join(pieces) == whole.text
        assert (last.finish_reason, last.usage, last.adapters) == (whole.finish_reason, whole.usage, whole.adapters)

    async def test_generated_text_streams_and_comes_whole(self, client: FrontEndClient) -> None:
        whole = await client.generate(Call())
        pieces, last = await _drained(client.stream_generate(Call()))
        assert whole.text == "".join(pieces) == "one two three"
        assert whole.usage == last.usage == (14, 13)

    async def test_adapters_serve_and_are_named(self, client: FrontEndClient) -> None:
        answer = await client.summarize(Call(adapters=["prompt", "lora:1"]))
        assert {(name, version, kind) for name, version, _, kind in answer.adapters} == {
            ("lora", 1, "lora"),
            ("prompt", 1, "prompt"),
        }
        assert all(len(digest) == 64 for _, _, digest, _ in answer.adapters)
        assert sorted(answer.text) == sorted("one two three")

    async def test_streamed_answer_names_its_adapters(self, client: FrontEndClient) -> None:
        _, last = await _drained(client.stream(Call(adapters=["lora"])))
        assert [name for name, *_ in last.adapters] == ["lora"]

    async def test_adapter_changes_the_answer(self, client: FrontEndClient) -> None:
        texts = {(await client.summarize(Call(text="abcdefgh", adapters=[name]))).text for name in ("lora", "prompt")}
        assert len(texts | {"abcdefgh"}) > 1

    async def test_max_new_tokens_ends_the_text_with_length(self, client: FrontEndClient) -> None:
        answer = await client.generate(Call(sampling={"max_new_tokens": 3}))
        assert (answer.text, answer.finish_reason, answer.usage[1]) == ("one", "length", 3)

    async def test_stop_string_ends_the_text_and_is_left_out(self, client: FrontEndClient) -> None:
        pieces, last = await _drained(client.stream(Call(sampling={"stop": " thr"})))
        assert ("".join(pieces), last.finish_reason) == ("one two", "stop")

    async def test_every_sampling_option_is_taken(self, client: FrontEndClient) -> None:
        sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 1, "stop": ["x", "y"]}
        sampling |= {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "max_new_tokens": 20}
        assert (await client.summarize(Call(sampling=sampling))).text == "one two three"

    async def test_own_request_id_comes_back(self, client: FrontEndClient) -> None:
        call = Call(request_id=f"mine-{client.name}.1")
        assert (await client.summarize(call)).request_id == call.request_id

    async def test_drawn_request_ids_differ(self, client: FrontEndClient) -> None:
        assert len({(await client.summarize(Call())).request_id for _ in range(3)}) == 3

    async def test_many_calls_at_once_each_get_their_own_answer(self, client: FrontEndClient) -> None:
        texts = [f"text number {index}" for index in range(ENGINE.max_num_waiting)]
        answers = await asyncio.gather(*(client.summarize(Call(text=text)) for text in texts))
        assert [answer.text for answer in answers] == texts

    async def test_call_of_an_earlier_class_is_answered_before_those_that_wait(
        self, server: RunningServer, client: FrontEndClient
    ) -> None:
        ended: list[str] = []

        async def ask(name: str, priority: int | None) -> None:
            await client.generate(Call(text=name, priority=priority))
            ended.append(name)

        async with _streaming(client, ENGINE.max_num_seqs), asyncio.TaskGroup() as group:
            for number, (name, priority) in enumerate([("behind", 2), ("usual", None), ("before", -2)], 1):
                group.create_task(ask(name, priority))
                await _until(lambda count=number: server.stats().num_waiting == count)
        assert ended.index("behind") == 2
        await server.idle()

    async def test_text_beyond_ascii_survives(self, client: FrontEndClient) -> None:
        pieces, _ = await _drained(client.stream(Call(text="Zoë: 你好 🙂")))
        assert "".join(pieces) == "Zoë: 你好 🙂"


class TestScores:
    async def test_references_in_the_request_give_scores(self, client: FrontEndClient) -> None:
        call = Call(references=["one two three", "four"])
        whole = await client.summarize(call)
        _, last = await _drained(client.stream(call))
        assert set(whole.scores) == set(last.scores) == SCORES
        assert whole.scores["rouge1"] == last.scores["rouge1"] == pytest.approx(100)

    async def test_references_that_come_later_give_scores(self, client: FrontEndClient) -> None:
        answer = await client.summarize(Call(adapters=["lora"]))
        scores = await client.submit_references(answer.request_id, [answer.text])
        assert set(scores) == SCORES
        assert scores["rougeL"] == pytest.approx(100)

    async def test_evaluations_gather_what_was_scored(self, client: FrontEndClient) -> None:
        before = (await client.evaluations()).get("base", (0, {}))[0]
        await client.summarize(Call(references=["one two three"]))
        # Figures that were dear to make, as the first ones on a busy machine, are told again for some seconds.
        async with asyncio.timeout(20):
            while (found := (await client.evaluations())["base"])[0] == before:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert found[0] == before + 1
        assert set(found[1]) == SCORES

    @pytest.mark.parametrize(
        ("request_id", "references", "code"),
        [
            ("never-seen", ["x"], "NOT_FOUND"),
            ("bad id!", ["x"], "INVALID_ARGUMENT"),
            ("never-seen", [], "INVALID_ARGUMENT"),
            ("never-seen", [" "], "INVALID_ARGUMENT"),
            ("never-seen", ["x"] * 99, "INVALID_ARGUMENT"),
        ],
    )
    async def test_bad_references_are_refused(
        self, client: FrontEndClient, request_id: str, references: list[str], code: str
    ) -> None:
        assert (await _refusal(client.submit_references(request_id, references))).code == code


BAD_CALLS: list[tuple[Call, str, str]] = [
    (Call(adapters=["nobody"]), "NOT_FOUND", "nobody"),
    (Call(adapters=["lora:99"]), "NOT_FOUND", "99"),
    (Call(adapters=["lora@nowhere"]), "NOT_FOUND", "nowhere"),
    (Call(adapters=["../etc"]), "INVALID_ARGUMENT", "name"),
    (Call(adapters=["lora:x"]), "INVALID_ARGUMENT", "version"),
    (Call(adapters=["lora", "lora"]), "INVALID_ARGUMENT", "lora"),
    (Call(adapters=["lora", "prompt", "lora"]), "INVALID_ARGUMENT", "at most one"),
    (Call(text=""), "INVALID_ARGUMENT", "empty"),
    (Call(text=" \n"), "INVALID_ARGUMENT", "empty"),
    (Call(text="x" * 700), "INVALID_ARGUMENT", "600"),
    (Call(text="x" * 300_000), "INVALID_ARGUMENT", "characters"),
    (Call(text="x" * 598, adapters=["prompt"]), "INVALID_ARGUMENT", "virtual"),
    (Call(request_id="no spaces"), "INVALID_ARGUMENT", "request_id"),
    (Call(request_id="x" * 129), "INVALID_ARGUMENT", "request_id"),
    (Call(references=[""]), "INVALID_ARGUMENT", "reference"),
    (Call(references=["r"] * 17), "INVALID_ARGUMENT", "16"),
    (Call(priority=3), "INVALID_ARGUMENT", "priority"),
    (Call(priority=-3), "INVALID_ARGUMENT", "priority"),
    (Call(sampling={"max_new_tokens": 0}), "INVALID_ARGUMENT", "max_new_tokens"),
    (Call(sampling={"max_new_tokens": -1}), "INVALID_ARGUMENT", "max_new_tokens"),
    (Call(sampling={"max_new_tokens": 2_000_000_000}), "INVALID_ARGUMENT", "max_new_tokens"),
    (Call(sampling={"temperature": -0.1}), "INVALID_ARGUMENT", "temperature"),
    (Call(sampling={"temperature": 1e30}), "INVALID_ARGUMENT", "temperature"),
    (Call(sampling={"top_p": 0.0}), "INVALID_ARGUMENT", "top_p"),
    (Call(sampling={"top_p": 1.5}), "INVALID_ARGUMENT", "top_p"),
    (Call(sampling={"top_k": -2}), "INVALID_ARGUMENT", "top_k"),
    (Call(sampling={"seed": -2}), "INVALID_ARGUMENT", "seed"),
    (Call(sampling={"stop": [""]}), "INVALID_ARGUMENT", "stop"),
    (Call(sampling={"stop": ["s"] * 17}), "INVALID_ARGUMENT", "stop"),
    (Call(sampling={"repetition_penalty": 0.0}), "INVALID_ARGUMENT", "repetition_penalty"),
    (Call(sampling={"no_repeat_ngram_size": -1}), "INVALID_ARGUMENT", "no_repeat_ngram_size"),
]


def _named(case: tuple[Call, str, str]) -> str:
    call, _, about = case
    return f"{about}-{next(iter(call.sampling.values()), '') or call.adapters or call.text[:3]}"


class TestBadCalls:
    @pytest.mark.parametrize("case", BAD_CALLS, ids=_named)
    async def test_bad_call_is_refused_with_its_reason(
        self, client: FrontEndClient, case: tuple[Call, str, str]
    ) -> None:
        call, code, about = case
        for ask in (client.summarize, client.generate):
            refused = await _refusal(ask(call))
            assert refused.code == code
            assert about in refused.message
            assert refused.request_id or call.request_id
        streamed = await _refusal(_drained(client.stream(call)))
        assert (streamed.code, streamed.message) == (code, refused.message)
        await _still_serves(client)

    async def test_refused_parameter_is_named(self, client: FrontEndClient) -> None:
        refused = await _refusal(client.summarize(Call(request_id="blame", sampling={"top_p": 2.0})))
        assert (refused.param, refused.request_id) == ("top_p", "blame")

    async def test_both_front_ends_use_the_same_words(self, server: RunningServer) -> None:
        messages = []
        for kind in (HttpClient, GrpcClient):
            async with kind(server) as client:
                messages.append((await _refusal(client.summarize(Call(adapters=["nobody"])))).message)
        assert messages[0] == messages[1]


BAD_UPLOADS: dict[str, tuple[Callable[[], Files], str]] = {
    "pickle": (lambda: {**lora_files(), WEIGHTS: b"\x80\x04\x95\x0a\x00\x00\x00cos\nsystem\n."}, "INVALID_ARGUMENT"),
    "nan": (lambda: with_nan(lora_files()), "INVALID_ARGUMENT"),
    "truncated": (lambda: {**lora_files(), WEIGHTS: lora_files()[WEIGHTS][:-8]}, "INVALID_ARGUMENT"),
    "empty-weights": (lambda: {**lora_files(), WEIGHTS: b""}, "INVALID_ARGUMENT"),
    "no-weights": (lambda: {CONFIG: lora_files()[CONFIG]}, "INVALID_ARGUMENT"),
    "no-config": (lambda: {WEIGHTS: lora_files()[WEIGHTS]}, "INVALID_ARGUMENT"),
    "config-no-json": (lambda: {**lora_files(), CONFIG: b"{"}, "INVALID_ARGUMENT"),
    "bad-file-name": (lambda: {**lora_files(), "../../evil": b"x"}, "INVALID_ARGUMENT"),
    "pickle-name": (lambda: {**lora_files(), "adapter_model.bin": b"x"}, "FAILED_PRECONDITION"),
    "other-base": (lambda: for_another_base(lora_files()), "FAILED_PRECONDITION"),
    "rank-over-limit": (lambda: lora_files(rank=65), "RESOURCE_EXHAUSTED"),
    "no-files": (dict, "INVALID_ARGUMENT"),
}


KINDS: dict[str, tuple[Callable[[], Files], str]] = {
    "ia3": (ia3_files, "prefix"),
    "norm": (norm_files, "prompt"),
    "prefix": (prefix_files, "ia3"),
}


class TestAdapters:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_every_kind_is_named_alike_and_takes_one_role(self, client: FrontEndClient, kind: str) -> None:
        make, partner = KINDS[kind]
        version = await client.upload(kind, make())
        assert version["kind"] == kind
        if partner in KINDS:
            await client.upload(partner, KINDS[partner][0]())
        answer = await client.summarize(Call(adapters=[partner, kind]))
        assert {name: served for name, _, _, served in answer.adapters} == {kind: kind, partner: partner}
        rival = "prompt" if kind == "prefix" else "lora"
        assert (await _refusal(client.summarize(Call(adapters=[kind, rival])))).code == "INVALID_ARGUMENT"

    async def test_upload_is_listed_and_serves_at_once(self, client: FrontEndClient) -> None:
        name = f"fresh-{client.name}"
        version = await client.upload(name, lora_files(seed=7, rank=3), alias="stable")
        assert (version["name"], version["version"], version["kind"], version["rank"]) == (name, 1, "lora", 3)
        assert version["state"] == "ready"
        assert (await client.summarize(Call(adapters=[f"{name}@stable"]))).adapters[0][:2] == (name, 1)
        adapter = await client.adapter(name)
        assert adapter["aliases"] == {"stable": 1}
        assert [version["digest"] for version in adapter["versions"]] == [version["digest"]]
        assert name in [adapter["name"] for adapter in await client.adapters()]

    async def test_metrics_that_a_manifest_names_are_told(self, client: FrontEndClient) -> None:
        name = f"metrics-{client.name}"
        assert (await client.upload(name, lora_files(seed=17)))["metrics"] == []
        manifest = {"name": name, "kind": "lora", "metrics": ["chrf", "rouge"]}
        named = await client.upload(name, lora_files(seed=18) | {MANIFEST_FILE: json.dumps(manifest).encode()})
        assert named["metrics"] == ["chrf", "rouge"]
        assert [version["metrics"] for version in (await client.adapter(name))["versions"]] == [[], ["chrf", "rouge"]]

    async def test_same_files_again_give_the_same_version(self, client: FrontEndClient) -> None:
        name = f"again-{client.name}"
        first = await client.upload(name, lora_files(seed=8))
        assert await client.upload(name, lora_files(seed=8)) == first
        assert (await client.upload(name, lora_files(seed=9)))["version"] == 2

    @pytest.mark.parametrize("case", BAD_UPLOADS)
    async def test_bad_upload_is_refused_and_leaves_nothing(self, client: FrontEndClient, case: str) -> None:
        files, code = BAD_UPLOADS[case]
        refused = await _refusal(client.upload(f"bad-{case}", files()))
        assert refused.code == code, refused.message
        assert (await _refusal(client.adapter(f"bad-{case}"))).code == "NOT_FOUND"
        await _still_serves(client)

    @pytest.mark.parametrize(("name", "alias"), [("Upper", None), ("fine", "Not Fine"), ("fake", None)])
    async def test_bad_name_is_refused(self, client: FrontEndClient, name: str, alias: str | None) -> None:
        assert (await _refusal(client.upload(name, lora_files(), alias))).code == "INVALID_ARGUMENT"

    async def test_unknown_adapter_is_not_found(self, client: FrontEndClient) -> None:
        assert (await _refusal(client.adapter("nobody"))).code == "NOT_FOUND"


class TestLoad:
    async def test_full_queue_refuses_and_recovers(self, client: FrontEndClient, server: RunningServer) -> None:
        async with _streaming(client, ENGINE.max_num_seqs):
            waiting = [asyncio.create_task(client.summarize(LONG)) for _ in range(ENGINE.max_num_waiting)]
            await _until(lambda: server.stats().num_waiting == ENGINE.max_num_waiting)
            for ask in (client.summarize(LONG), _drained(client.stream(LONG))):
                refused = await _refusal(ask)
                assert refused.code == "RESOURCE_EXHAUSTED"
                assert "queue is full" in refused.message
        assert {answer.finish_reason for answer in await asyncio.gather(*waiting)} == {"length"}
        await _still_serves(client)

    async def test_client_gone_mid_stream_frees_its_row(self, client: FrontEndClient, server: RunningServer) -> None:
        num_before = server.stats().num_generated_tokens
        async with _streaming(client, 2):
            assert server.stats().num_running == 2
        await server.idle()
        assert server.stats().num_generated_tokens - num_before < 256
        await _still_serves(client)

    async def test_client_gone_before_a_whole_answer_frees_its_row(
        self, client: FrontEndClient, server: RunningServer
    ) -> None:
        num_before = server.stats().num_generated_tokens
        call = asyncio.create_task(client.summarize(LONG))
        await _until(lambda: server.stats().num_running == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await server.idle()
        assert server.stats().num_generated_tokens - num_before < 200
        await _still_serves(client)

    async def test_deadline_ends_the_call_and_frees_its_row(
        self, client: FrontEndClient, server: RunningServer
    ) -> None:
        hurried = Call(text=LONG.text, sampling=LONG.sampling, timeout_s=0.1)
        assert (await _refusal(client.summarize(hurried))).code == "DEADLINE_EXCEEDED"
        assert (await _refusal(_drained(client.stream(hurried)))).code == "DEADLINE_EXCEEDED"
        await server.idle()
        await _still_serves(client)

    async def test_request_id_in_flight_is_refused(self, client: FrontEndClient, server: RunningServer) -> None:
        twice = Call(text=LONG.text, sampling=LONG.sampling, request_id="twice")
        stream = client.stream(twice)
        async with aclosing(stream):  # type: ignore[type-var]
            await anext(stream)
            refused = await _refusal(client.summarize(twice))
        assert (refused.code, refused.param, refused.request_id) == ("ALREADY_EXISTS", "request_id", "twice")
        await server.idle()

    async def test_draining_server_refuses_and_says_so(self, client: FrontEndClient, server: RunningServer) -> None:
        health = server.container.services.health
        assert await client.ready()
        health.enter(Phase.DRAINING)
        try:
            assert not await client.ready()
            assert (await _refusal(client.summarize(Call()))).code == "UNAVAILABLE"
        finally:
            health.enter(Phase.SERVING)
        await _still_serves(client)


@pytest.mark.parametrize("kind", [HttpClient, GrpcClient], ids=["http", "grpc"])
async def test_engine_death_ends_every_call_with_its_reason(
    kind: Callable[[RunningServer], FrontEndClient], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with running_server(tmp_path_factory.mktemp("dying"), ENGINE) as server, kind(server) as client:
        whole = asyncio.create_task(client.summarize(LONG))
        stream = client.stream(LONG)
        await anext(stream)
        engine: Any = server.container._engine
        engine.kill()
        assert (await _refusal(_drained(stream))).code == "UNAVAILABLE"
        assert (await _refusal(whole)).code == "UNAVAILABLE"
        assert (await _refusal(client.summarize(Call()))).code == "UNAVAILABLE"
        assert not await client.ready()
