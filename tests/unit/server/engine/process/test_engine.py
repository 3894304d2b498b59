"""An engine in a process of its own, when things go wrong: that dies, is dying, cannot start, or does not answer."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from adapters.manifest import AdapterKind
from server.core.errors import (
    DeadlineExceededError,
    ErrorCode,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    MedleyError,
    Refusal,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.outputs import FinishReason
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, EngineRequest, ResolvedAdapter
from server.engine.fake import FakeEngineConfig
from server.engine.process import engine as process_engine
from server.engine.process import launch
from server.engine.process.engine import ProcessEngine
from server.observability.logging import LogConfig, configure_logging
from tests.fixtures import process_engines
from tests.fixtures.process_engines import FATAL_TOKEN, PacedEngine, mortal, quick

ROOT = Path(__file__).parents[5]
LORA = ResolvedAdapter("pinned", AdapterKind.LORA, Path("/nowhere"), rank=2)


def ask(name: str, max_new_tokens: int = 3, first_token: int = 5) -> EngineRequest:
    return EngineRequest(name, (first_token, *range(4, 250)), SamplingParams(max_new_tokens=max_new_tokens))


async def read(outputs: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    return [output async for output in outputs]


async def until_serving(engine: ProcessEngine) -> None:
    async with asyncio.timeout(30):
        while not engine.stats().alive:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_down(engine: ProcessEngine) -> None:
    async with asyncio.timeout(10):
        while engine.stats().alive:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def kill(engine: ProcessEngine, by: int = signal.SIGKILL) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, by)


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    made = mortal(max_num_seqs=2, max_num_waiting=3)
    await made.start()
    yield made
    await made.stop()


async def test_kill_ends_every_request_once_and_another_process_serves_with_what_was_pinned(
    engine: ProcessEngine,
) -> None:
    await engine.pin_adapter(LORA)
    open_requests = [engine.submit(ask(str(number), 200)) for number in range(3)]
    await anext(open_requests[0])
    kill(engine)
    for found in await asyncio.gather(*map(read, open_requests)):
        assert [output.finish_reason for output in found if output.finish_reason] == [FinishReason.ERROR]
        assert found[-1].error is not None
        assert found[-1].error.code is ErrorCode.UNAVAILABLE
    down = engine.stats()
    assert (down.alive, down.is_restarting, down.num_waiting, down.num_running) == (False, True, 0, 0)
    assert down.resident == ()
    with pytest.raises(UnavailableError, match="started again"):
        engine.submit(ask("too early"))
    await until_serving(engine)
    assert engine.stats().resident == (LORA.digest,)
    assert [output.token_ids for output in await read(engine.submit(ask("0")))] == [(5,), (4,), (5,)]
    # What is counted goes on, over all the processes.
    assert engine.stats().num_generated_tokens >= down.num_generated_tokens + 3 > 3


async def test_kill_fails_calls_that_wait(engine: ProcessEngine) -> None:
    kill(engine, signal.SIGSTOP)
    pinning = asyncio.create_task(engine.pin_adapter(LORA))
    checking = asyncio.create_task(engine.check_adapter(LORA))
    await asyncio.sleep(0)
    kill(engine)
    for waiting in (pinning, checking):
        with pytest.raises(UnavailableError):
            await waiting


async def test_kill_again_and_again_is_lived_through(engine: ProcessEngine) -> None:
    for turn in range(3):
        outputs = engine.submit(ask(str(turn), 200))
        kill(engine)
        assert (await read(outputs))[-1].finish_reason is FinishReason.ERROR
        await until_serving(engine)
    assert (await read(engine.submit(ask("after"))))[-1].finish_reason is FinishReason.LENGTH


async def test_unpinned_adapter_is_not_pinned_again(engine: ProcessEngine) -> None:
    await engine.pin_adapter(LORA)
    engine.unpin_adapter(LORA.digest)
    kill(engine)
    await until_down(engine)
    await until_serving(engine)
    assert engine.stats().resident == ()


async def test_engine_that_dies_takes_its_process_along_and_comes_again(engine: ProcessEngine) -> None:
    first = engine.pid
    bystander = engine.submit(ask("bystander", 200))
    fatal = engine.submit(ask("fatal", first_token=FATAL_TOKEN))
    for found in await asyncio.gather(read(bystander), read(fatal)):
        assert [output.error.code for output in found if output.error] == [ErrorCode.UNAVAILABLE]
    await until_serving(engine)
    assert engine.pid != first
    assert (await read(engine.submit(ask("after"))))[-1].finish_reason is FinishReason.LENGTH


async def test_full_queue_is_refused_at_once_and_counted_from_the_first_moment(engine: ProcessEngine) -> None:
    kill(engine, signal.SIGSTOP)  # so that nothing can have begun to run
    accepted = [engine.submit(ask(str(number))) for number in range(3)]
    assert (engine.stats().num_waiting, engine.stats().num_running) == (3, 0)
    with pytest.raises(ResourceExhaustedError, match="3 waiting"):
        engine.submit(ask("one too many"))
    kill(engine, signal.SIGCONT)
    assert {(await read(outputs))[-1].finish_reason for outputs in accepted} == {FinishReason.LENGTH}
    assert (engine.stats().num_waiting, engine.stats().num_running) == (0, 0)
    assert (await read(engine.submit(ask("one too many"))))[-1].finish_reason is FinishReason.LENGTH


async def test_deadline_that_cannot_be_met_is_refused_at_once_by_the_pace_that_the_process_tells() -> None:
    engine = quick(partial(PacedEngine, FakeEngineConfig(max_num_seqs=1)))
    await engine.start()
    await read(engine.submit(ask("so that there was a report")))
    assert engine.stats().pace == PacedEngine.PACE
    kill(engine, signal.SIGSTOP)  # so that nothing can have begun to run

    def within(name: str, seconds: float) -> EngineRequest:
        return replace(ask(name), deadline_s=time.monotonic() + seconds)

    accepted = [engine.submit(within(name, 60)) for name in ("runs", "waits", "waits, too")]
    with pytest.raises(DeadlineExceededError, match="2 requests are before it") as refused:
        engine.submit(within("late", 1.9))
    assert refused.value.refusal is Refusal.TOO_LATE_TO_WAIT
    assert engine.stats().num_waiting == 3
    kill(engine, signal.SIGCONT)
    assert {(await read(outputs))[-1].finish_reason for outputs in accepted} == {FinishReason.LENGTH}
    await read(engine.submit(within("late", 1.9)))
    await engine.stop()


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "param"),
    [((), 1, "prompt"), ((5,) * 2000, 1, "prompt"), ((10**6,), 1, "prompt"), ((5,), 300, "max_new_tokens")],
)
async def test_submit_what_can_never_be_served_is_refused_at_once(
    engine: ProcessEngine, prompt: tuple[int, ...], max_new_tokens: int, param: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        engine.submit(EngineRequest("a", prompt, SamplingParams(max_new_tokens=max_new_tokens)))
    assert refused.value.param == param
    assert engine.stats().num_waiting == 0


@pytest.mark.parametrize(
    ("make", "told", "said"),
    [
        (process_engines.refused, InvalidArgumentError, "no such device"),
        (process_engines.broken, InternalError, "nobody thought of it"),
        (process_engines.dying, FailedPreconditionError, "ended with status 3 while it was starting"),
    ],
)
async def test_start_that_fails_says_what_the_engine_said(make: partial, told: type[MedleyError], said: str) -> None:
    engine = quick(make)
    with pytest.raises(told, match=said) as failed:
        await engine.start()
    assert failed.value.param == ("device" if told is InvalidArgumentError else None)
    assert (engine.stats().alive, engine.stats().is_restarting) == (False, False)
    await engine.stop()


async def test_stop_while_starting_ends_the_start() -> None:
    engine = quick(process_engines.endless)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.1)
    await asyncio.wait_for(engine.stop(), 10)
    with pytest.raises(MedleyError):
        await asyncio.wait_for(starting, 10)
    assert engine.pid is None


async def test_start_that_is_cancelled_ends_the_process() -> None:
    engine = quick(process_engines.endless)
    starting = asyncio.create_task(engine.start())
    async with asyncio.timeout(20):
        while not _processes():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with asyncio.timeout(20):
        while _processes():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _processes() -> list[psutil.Process]:
    """Return the engines' processes that live; tests that run in this one may have children of other kinds."""
    found = []
    for child in psutil.Process().children():
        # Of one that has ended and was not waited for yet, nothing is told.
        with suppress(psutil.NoSuchProcess):
            if str(launch._MAIN) in child.cmdline():
                found.append(child)
    return found


async def test_stop_twice_and_before_any_start_does_no_harm() -> None:
    engine = mortal()
    await engine.stop()
    engine = mortal()
    await engine.start()
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    await engine.stop()
    await engine.stop()
    assert not process.is_running()
    assert (engine.stats().alive, engine.stats().is_restarting) == (False, False)


async def test_process_that_does_not_answer_is_done_without(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_engine, "_ABORT_S", 0.05)
    monkeypatch.setattr(launch, "_SHUTDOWN_S", 0.05)
    kill(engine, signal.SIGSTOP)
    outputs = engine.submit(ask("a"))
    await asyncio.wait_for(engine.drain(0.01), 10)
    assert [output.finish_reason for output in await read(outputs)] == [FinishReason.ABORT]
    await asyncio.wait_for(engine.stop(), 10)
    assert engine.stats().alive is False


async def test_base_that_changed_meanwhile_is_not_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = quick(partial(process_engines.different_each_time, tmp_path / "starts"))
    await engine.start()
    kill(engine)
    async with asyncio.timeout(20):
        while "no longer what it was" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert engine.stats().alive is False
    await engine.stop()


_SERVER = """
import asyncio
from tests.fixtures.process_engines import mortal

async def main():
    engine = mortal()
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_server_that_is_killed_leaves_no_process_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        process = psutil.Process(int(server.stdout.readline()))
        assert process.is_running()
        server.kill()
    # Whoever takes it over may not look after it: it has ended, whether or not somebody asked how.
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_before")
async def test_process_logs_as_the_server_does_and_leaves_standard_output_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogConfig("json", "WARNING"), io.StringIO())
    engine = quick(process_engines.talkative)
    await engine.start()
    pid = engine.pid
    await engine.stop()
    written = capfd.readouterr()
    assert written.out == ""
    (line,) = (json.loads(each) for each in written.err.splitlines() if each.startswith("{"))
    assert (line["message"], line["logger"], line["level"], line["num_layers"], line["engine_process"]) == (
        *("made it", "some.engine", "WARNING", 2),
        pid,
    )
    assert "printed by a library" in written.err
