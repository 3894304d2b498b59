"""One core is kept running, and another launched when it dies."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest

from server.core.errors import FailedPreconditionError, InternalError
from server.engine.supervisor import BackOff, Supervisor, telling_progress
from server.engine.vllm.core import Core
from tests.fixtures.scripted_core import ScriptedCore

QUICK = BackOff(first_s=0.01, longest_s=0.04, forgiven_s=60)


class Owner:
    """Writes down what a supervisor tells it."""

    def __init__(self, launch: Callable[[], Core], back_off: BackOff = QUICK) -> None:
        self.cores: list[ScriptedCore] = []
        self.num_deaths = self.num_abandoned = 0
        self.supervisor = Supervisor(
            launch, went_up=self.cores.append, went_down=self._died, abandon=self._abandoned, back_off=back_off
        )

    def _died(self) -> None:
        self.num_deaths += 1

    def _abandoned(self) -> None:
        self.num_abandoned += 1

    async def until(self, num_cores: int) -> ScriptedCore:
        async with asyncio.timeout(5):
            while len(self.cores) < num_cores:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return self.cores[-1]


async def test_start_has_a_core_up_and_stop_shuts_it_down() -> None:
    owner = Owner(ScriptedCore)
    await owner.supervisor.start()
    assert (len(owner.cores), owner.supervisor.is_running) == (1, True)
    await owner.supervisor.stop()
    assert owner.cores[0].is_shut_down
    assert (owner.num_deaths, owner.supervisor.is_running) == (0, False)


@pytest.mark.parametrize(
    ("raised", "told"),
    [(FailedPreconditionError("no such model"), FailedPreconditionError), (KeyError(), InternalError)],
)
async def test_start_launch_fails_tells_so(raised: Exception, told: type[Exception]) -> None:
    def launch() -> Core:
        raise raised

    with pytest.raises(told):
        await Owner(launch).supervisor.start()


async def test_death_launches_another_after_waits_that_double_up_to_a_limit() -> None:
    times_s: list[float] = []

    def launch() -> Core:
        times_s.append(time.monotonic())
        if len(times_s) in range(2, 6):
            raise FailedPreconditionError("no memory")
        return ScriptedCore()

    owner = Owner(launch)
    await owner.supervisor.start()
    died_s = time.monotonic()
    owner.cores[0].die()
    await owner.until(2)
    waits_s = [after - before for before, after in zip([died_s, *times_s[1:]], times_s[1:], strict=False)]
    assert all(wait_s >= least_s for wait_s, least_s in zip(waits_s, [0.01, 0.02, 0.04, 0.04, 0.04], strict=True))
    assert (owner.num_deaths, owner.cores[0].is_shut_down, owner.supervisor.is_running) == (1, True, True)
    await owner.supervisor.stop()


async def test_death_after_a_long_life_waits_as_after_the_first(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner(ScriptedCore, BackOff(first_s=0.02, longest_s=60, forgiven_s=0))
    await owner.supervisor.start()
    for num_cores in range(2, 6):
        owner.cores[-1].die()
        await owner.until(num_cores)
    assert [record.args for record in caplog.records if "launched again" in str(record.msg)] == [(0.02,)] * 4
    await owner.supervisor.stop()


async def test_stop_while_launching_does_not_wait_and_gives_the_core_up() -> None:
    launching, may_launch = threading.Event(), threading.Event()
    late = ScriptedCore()
    cores = iter([ScriptedCore(), late])

    def launch() -> Core:
        core = next(cores)
        if core is late:
            launching.set()
            may_launch.wait(10)
        return core

    owner = Owner(launch)
    await owner.supervisor.start()
    owner.cores[0].die()
    assert await asyncio.to_thread(launching.wait, 10)
    await asyncio.wait_for(owner.supervisor.stop(), 1)
    may_launch.set()
    async with asyncio.timeout(5):
        while not late.is_shut_down:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (len(owner.cores), owner.num_abandoned) == (1, 1)


def test_long_start_is_told_of_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with telling_progress(interval_s=0.01):
        while not caplog.messages:
            time.sleep(0.001)
    assert caplog.messages[0] == "the engine is starting"
    assert caplog.messages[-1] == "the engine has started"
    assert isinstance(caplog.records[-1].elapsed_s, float)  # type: ignore[attr-defined]


def test_start_that_failed_is_not_said_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="no such model"), telling_progress():
        raise ValueError("no such model")
    assert caplog.messages == []
