"""The native engine when things go wrong: one bad row, one bad adapter, one bad step, a dead loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the adapters are made with PEFT")

from safetensors.torch import load_file, save_file  # noqa: E402

from adapters.errors import InvalidAdapterError  # noqa: E402
from adapters.manifest import AdapterKind  # noqa: E402
from server.core.errors import (  # noqa: E402
    ErrorCode,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from server.core.outputs import FinishReason  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineOutput, EngineRequest, ResolvedAdapter  # noqa: E402
from server.engine.native import step_loop  # noqa: E402
from server.engine.native.batch import Batch, EncodeShare, StepOutput  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig, _answer  # noqa: E402
from server.engine.native.prefill import Prefill  # noqa: E402
from tests.fixtures.floods import check_flood_gives_way  # noqa: E402
from tests.fixtures.t5_models import (  # noqa: E402
    LORAS,
    PROMPTS,
    TINY,
    resolved,
    write_loras,
    write_prompts,
    write_t5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_t5(made / "base", TINY, is_tied=False, seed=1)
    write_loras(made, made / "base", {name: LORAS[name] for name in ("qv-2", "all-linear-8")}, seed=2)
    write_prompts(made, made / "base", {"prompt-8": PROMPTS["prompt-8"]}, seed=3)
    return made


def make(folder: Path, **options: object) -> NativeEngine:
    fixed = {"device": "cpu", "dtype": "float32", "num_threads": 1, "max_model_len": 64, "max_num_batched_tokens": 64}
    return NativeEngine(NativeEngineConfig(str(folder / "base"), **{**fixed, **options}))


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[NativeEngine]:
    made = make(folder)
    await made.start()
    yield made
    await made.stop()


def ask(name: str, adapter: ResolvedAdapter | None = None, **params: object) -> EngineRequest:
    sampling = SamplingParams(**{"max_new_tokens": 6, **params})
    is_prompt = adapter is not None and adapter.kind is AdapterKind.PROMPT
    return EngineRequest(
        name,
        tuple(range(3, 23)),
        sampling,
        weight_adapter=None if is_prompt else adapter,
        soft_prompt=adapter if is_prompt else None,
    )


async def read(outputs: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in outputs]


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def damaged(folder: Path, tmp_path: Path, name: str, value: float, digest: str) -> ResolvedAdapter:
    """A copy of an adapter whose weights are all ``value``."""
    target = tmp_path / digest
    target.mkdir()
    (target / "adapter_config.json").write_bytes((folder / name / "adapter_config.json").read_bytes())
    weights = load_file(folder / name / "adapter_model.safetensors")
    save_file(
        {key: torch.full_like(tensor, value) for key, tensor in weights.items()}, target / "adapter_model.safetensors"
    )
    given = resolved(folder, name)
    return ResolvedAdapter(digest, given.kind, target, given.num_virtual_tokens, given.rank)


def overflowing(engine: NativeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ResolvedAdapter:
    """An adapter whose every number is finite and whose B(Ax) is not, beyond what the checks at load let pass."""
    given = resolved(folder, "all-linear-8")
    read = engine._tiers._read

    @torch.inference_mode()
    def spoil(adapter: ResolvedAdapter) -> object:
        payload = read(adapter)
        if adapter.digest == "spoilt":
            for site in payload.lora.values():
                for a in (site.a_IR, *site.packed[:1]):
                    a.fill_(1e38)
        return payload

    monkeypatch.setattr(engine._tiers, "_read", spoil)
    return ResolvedAdapter("spoilt", given.kind, given.path, rank=given.rank)


async def test_burst_into_an_idle_engine_starts_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So long that a busy machine does not part the burst.
    monkeypatch.setattr(step_loop, "_QUIET_S", 0.3)
    monkeypatch.setattr(step_loop, "_LONGEST_GATHERING_S", 3.0)
    engine = make(folder, max_num_batched_tokens=1024)
    await engine.start()
    try:
        await asyncio.gather(*(read(engine.submit(ask(f"first-{index}"))) for index in range(8)))
        # The first tokens of all come from one step: eight rows take as many steps as one.
        assert engine.stats().num_steps == 6
    finally:
        await engine.stop()


async def test_adapter_that_cannot_be_loaded_fails_its_requests_alone(
    engine: NativeEngine, folder: Path, tmp_path: Path
) -> None:
    bad = damaged(folder, tmp_path, "qv-2", float("nan"), "nan")
    alone = tokens(await read(engine.submit(ask("alone"))))
    first, second, base = await asyncio.gather(
        *(read(engine.submit(ask(name, adapter))) for name, adapter in (("1", bad), ("2", bad), ("3", None)))
    )
    for failed in (first, second):
        assert [output.finish_reason for output in failed] == [FinishReason.ERROR]
        assert failed[0].error is not None
        assert failed[0].error.code is ErrorCode.INVALID_ARGUMENT
    assert tokens(base) == alone
    assert engine.stats().resident == ()


async def test_row_whose_logits_are_not_finite_fails_alone_and_leaves_no_trace(
    engine: NativeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = overflowing(engine, folder, monkeypatch)
    sound = resolved(folder, "qv-2")
    alone = [tokens(await read(engine.submit(ask(f"a{i}", adapter)))) for i, adapter in enumerate((None, sound))]
    for turn in range(3):
        failed, base, adapted = await asyncio.gather(
            *(read(engine.submit(ask(f"{turn}{i}", adapter))) for i, adapter in enumerate((bad, None, sound)))
        )
        assert failed[-1].finish_reason is FinishReason.ERROR
        assert "not finite" in failed[-1].error.message
        assert [tokens(base), tokens(adapted)] == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_adapter_whose_product_overflows_fails_its_rows_alone_with_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    engine = make(folder, dtype=dtype)
    await engine.start()
    huge = overflowing(engine, folder, monkeypatch)
    try:
        crowd = [huge, None, resolved(folder, "qv-2"), huge, resolved(folder, "prompt-8")]
        ends = await asyncio.gather(*(read(engine.submit(ask(f"{i}", each))) for i, each in enumerate(crowd)))
        sound = [each for each in crowd if each is not huge]
        alone = await asyncio.gather(*(read(engine.submit(ask(f"s{i}", each))) for i, each in enumerate(sound)))
    finally:
        await engine.stop()
    for failed in (ends[0], ends[3]):
        assert [output.finish_reason for output in failed] == [FinishReason.ERROR]
        assert "not finite" in failed[0].error.message
    assert [tokens(ends[i]) for i in (1, 2, 4)] == [tokens(each) for each in alone]
    assert all(len(tokens(each)) == 6 for each in alone)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
async def test_prefill_without_memory_refuses_its_row_and_others_run_on(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    encode = Prefill.encode

    def short_of_memory(prefill: Prefill, share: EncodeShare) -> None:
        encode(prefill, share)
        if any(row.request.request_id == "large" for row in share.rows):
            if where == "cuda":
                raise torch.OutOfMemoryError
            torch.empty(1 << 60)

    monkeypatch.setattr(Prefill, "encode", short_of_memory)
    alone = tokens(await read(engine.submit(ask("alone", max_new_tokens=100))))
    running = engine.submit(ask("running", max_new_tokens=100))
    first = await anext(running)
    (refused,) = await read(engine.submit(ask("large")))
    assert refused.finish_reason is FinishReason.ERROR
    assert refused.error is not None
    assert refused.error.code is ErrorCode.RESOURCE_EXHAUSTED
    assert [*first.token_ids, *tokens(await read(running))] == alone
    assert tokens(await read(engine.submit(ask("after", max_new_tokens=100)))) == alone


async def test_check_adapter_not_finite_is_refused_beside_running_rows(
    engine: NativeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = overflowing(engine, folder, monkeypatch)
    alone = tokens(await read(engine.submit(ask("alone", max_new_tokens=100))))
    running = engine.submit(ask("running", max_new_tokens=100))
    first = await anext(running)
    with pytest.raises(InvalidAdapterError):
        await engine.check_adapter(bad)
    await engine.check_adapter(resolved(folder, "prompt-8"))
    assert [*first.token_ids, *tokens(await read(running))] == alone


async def test_check_adapter_while_the_engine_stops_says_that_it_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(folder)
    await engine.start()
    may_go_on = threading.Event()
    read_files = engine._tiers._read

    def slow(adapter: ResolvedAdapter) -> object:
        may_go_on.wait(5)
        return read_files(adapter)

    monkeypatch.setattr(engine._tiers, "_read", slow)
    names = ("qv-2", "all-linear-8")
    checks = [asyncio.create_task(engine.check_adapter(resolved(folder, name))) for name in names]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.wait(checks, timeout=5)
    may_go_on.set()
    await stopping
    for check in checks:
        assert isinstance(check.exception(), UnavailableError)


async def test_loading_thread_leaves_the_processors_to_the_steps(folder: Path) -> None:
    engine = make(folder, num_threads=2)
    await engine.start()
    try:
        counts = [Future(), Future()]
        engine._executor.submit(_answer, counts[0], torch.get_num_threads)
        engine._steps.post(partial(_answer, counts[1], torch.get_num_threads))
        assert [count.result(timeout=5) for count in counts] == [1, 2]
    finally:
        await engine.stop()


async def test_soft_prompt_of_another_length_than_on_record_is_refused(engine: NativeEngine, folder: Path) -> None:
    given = resolved(folder, "prompt-8")
    wrong = ResolvedAdapter("other", given.kind, given.path, num_virtual_tokens=7)
    (output,) = await read(engine.submit(ask("a", wrong)))
    assert output.finish_reason is FinishReason.ERROR


async def test_step_that_breaks_ends_its_rows_with_error_and_the_engine_lives_on(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tokens(await read(engine.submit(ask("alone"))))
    whole = engine._runner.execute
    calls = 0

    def breaks_once(batch: Batch) -> StepOutput:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory, say")
        return whole(batch)

    monkeypatch.setattr(engine._runner, "execute", breaks_once)
    broken = await asyncio.gather(*(read(engine.submit(ask(name))) for name in "ab"))
    assert [answer[-1].finish_reason for answer in broken] == [FinishReason.ERROR] * 2
    assert tokens(await read(engine.submit(ask("after")))) == alone
    assert engine.stats().alive


@pytest.fixture
async def chunked(folder: Path) -> AsyncIterator[NativeEngine]:
    """An engine whose rows of twenty tokens pass one encoder stage a step, of three, while others decode."""
    made = make(folder, max_prefill_tokens_per_step=4)
    await made.start()
    yield made
    await made.stop()


async def test_rows_encoded_stage_by_stage_get_the_tokens_of_rows_encoded_whole(
    engine: NativeEngine, chunked: NativeEngine, folder: Path
) -> None:
    adapters = [None, resolved(folder, "qv-2"), resolved(folder, "prompt-8"), resolved(folder, "all-linear-8")]
    whole = [tokens(await read(engine.submit(ask(f"{i}", adapter)))) for i, adapter in enumerate(adapters)]
    running = chunked.submit(ask("running", max_new_tokens=200))
    await anext(running)
    parts = [chunked.submit(ask(f"{i}", adapter)) for i, adapter in enumerate(adapters * 2)]
    assert [tokens(await read(part)) for part in parts] == whole * 2
    await running.aclose()


async def test_row_aborted_in_the_encoder_ends_and_its_neighbours_do_not_notice(
    chunked: NativeEngine, folder: Path
) -> None:
    alone = tokens(await read(chunked.submit(ask("alone"))))
    running = chunked.submit(ask("running", max_new_tokens=200))
    await anext(running)
    crowd = [chunked.submit(ask(f"{i}", resolved(folder, "qv-2") if i % 2 else None)) for i in range(8)]
    for i in range(1, 8, 2):
        chunked.abort(f"{i}")
    ends = [await read(each) for each in crowd]
    assert [tokens(end) for end in ends[::2]] == [alone] * 4
    assert all(end[-1].finish_reason is not None for end in ends)
    await running.aclose()


async def test_step_that_breaks_ends_rows_in_the_encoder_too(
    chunked: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tokens(await read(chunked.submit(ask("alone"))))
    running = chunked.submit(ask("running", max_new_tokens=200))
    await anext(running)
    whole = chunked._runner._prefill.encode

    def breaks(share: EncodeShare) -> None:
        whole(share)
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(chunked._runner._prefill, "encode", breaks)
    (end,) = await read(chunked.submit(ask("encoding")))
    monkeypatch.undo()
    assert end.finish_reason is FinishReason.ERROR
    assert (await read(running))[-1].finish_reason is FinishReason.ERROR
    assert tokens(await read(chunked.submit(ask("after")))) == alone
    assert (chunked.stats().num_running, chunked.stats().num_waiting) == (0, 0)


async def test_loop_that_dies_ends_everything_and_refuses_more(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [engine.submit(ask(name, max_new_tokens=200)) for name in "ab"]
    await anext(outputs[0])

    def dies(now_s: float) -> list[object]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine._steps._scheduler, "expire", dies)
    ends = [(await read(each))[-1] for each in outputs]
    assert [end.finish_reason for end in ends] == [FinishReason.ERROR] * 2
    assert all(isinstance(end.error, UnavailableError) for end in ends)
    assert not engine.stats().alive
    with pytest.raises(UnavailableError):
        engine.submit(ask("late"))
    with pytest.raises(UnavailableError):
        await engine.pin_adapter(ResolvedAdapter("x", AdapterKind.LORA, Path("x")))


async def test_sampling_seeded_is_the_same_alone_and_in_a_crowd(engine: NativeEngine, folder: Path) -> None:
    params = {"temperature": 1.2, "top_p": 0.9, "seed": 7, "max_new_tokens": 12}
    alone = tokens(await read(engine.submit(ask("alone", **params))))
    crowd = [engine.submit(ask(str(i), resolved(folder, "qv-2"), temperature=1.0, seed=i)) for i in range(5)]
    inside = engine.submit(ask("inside", **params))
    await asyncio.gather(*(read(each) for each in crowd))
    assert tokens(await read(inside)) == alone
    assert tokens(await read(engine.submit(ask("other", **{**params, "seed": 8})))) != alone


async def test_logprobs_come_with_each_token(engine: NativeEngine) -> None:
    outputs = await read(engine.submit(ask("a", num_logprobs=3)))
    for output in outputs:
        ((token_id,), (logprob,)) = output.token_ids, output.logprobs
        assert logprob.token_id == token_id == logprob.top[0].token_id
        assert logprob.logprob == logprob.top[0].logprob <= 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_token_ids": ()}, "prompt"),
        ({"prompt_token_ids": (5,) * 65}, "prompt"),
        ({"prompt_token_ids": (300,)}, "prompt"),
        ({"prompt_token_ids": (-1,)}, "prompt"),
        ({"sampling": SamplingParams(max_new_tokens=1000)}, "max_new_tokens"),
    ],
)
async def test_submit_beyond_the_limits_is_refused(engine: NativeEngine, fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        engine.submit(
            EngineRequest(**{"request_id": "a", "prompt_token_ids": (5,), "sampling": SamplingParams(), **fields})
        )
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields", [{"device": "tpu"}, {"dtype": "int8"}, {"max_loras": 0}, {"max_num_batched_tokens": 9}]
)
def test_config_out_of_range_is_refused(folder: Path, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        make(folder, **fields)


async def test_start_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError):
        await NativeEngine(NativeEngineConfig(str(tmp_path))).start()


async def test_bfloat16_prefers_the_tokens_float32_prefers(folder: Path, engine: NativeEngine) -> None:
    exact = await read(engine.submit(ask("a", num_logprobs=0, max_new_tokens=1)))
    rounded_engine = make(folder, dtype="bfloat16")
    await rounded_engine.start()
    try:
        rounded = await read(rounded_engine.submit(ask("a", num_logprobs=20, max_new_tokens=1)))
    finally:
        await rounded_engine.stop()
    # The logits span about 25; bfloat16 keeps 8 bits of each number on the way, so half a unit is what it may cost.
    (best,) = exact[0].logprobs
    found = {top.token_id: top.logprob for top in rounded[0].logprobs[0].top}
    assert found[best.token_id] == pytest.approx(best.logprob, abs=0.5)


async def test_flood_gives_way_to_another_tenant_in_a_full_queue(folder: Path) -> None:
    engine = make(folder, max_num_seqs=1, max_num_waiting=3)
    await engine.start()
    await check_flood_gives_way(engine)
    await engine.stop()
