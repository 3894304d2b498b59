"""What the engine's side tells of, and when: at once what somebody waits for, together what nobody does."""

import asyncio
from typing import Any

import pytest

from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, EngineRequest, EngineStats
from server.engine.process import wire
from server.engine.process.host import _EngineHost
from server.engine.streams import OutputStream

KEY = 7


class _Engine:
    def __init__(self) -> None:
        self.stream = OutputStream(lambda: None)

    def submit(self, _request: EngineRequest) -> OutputStream:
        return self.stream

    def stats(self) -> EngineStats:
        return EngineStats(alive=True, num_waiting=0, num_running=1)


class _Link:
    """The socket, as a list of what was told of the request in each message."""

    def __init__(self) -> None:
        self.told: list[list[EngineOutput]] = []

    def send(self, report: Any) -> None:
        assert all(packed[0] == KEY for packed in report.outputs)
        self.told.append([wire.unpack(packed) for packed in report.outputs])


async def told_of(*steps: EngineOutput, stream: bool, is_slow: bool = False) -> list[list[EngineOutput]]:
    """Return what is told of a request, if its engine hands over an output and, after a while, all others.

    Or each after a while, if it is slow: then no timer may matter.
    """
    host, engine, link = _EngineHost(), _Engine(), _Link()
    host._engine, host._wire = engine, link  # type: ignore[assignment]
    host._received(wire.Submit(KEY, EngineRequest("one", (3,), SamplingParams(), stream=stream)))
    for number, output in enumerate(steps):
        engine.stream.put(output)
        if is_slow or not number:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while sum(len(output.token_ids) for report in link.told for output in report) < len(steps):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return link.told


def begun(token: int) -> EngineOutput:
    return EngineOutput((token,), queue_s=0.5)


async def test_first_and_last_output_are_told_of_at_once_and_those_between_with_the_last() -> None:
    end = EngineOutput((8,), finish_reason=FinishReason.LENGTH)
    told = await told_of(begun(5), EngineOutput((6,)), EngineOutput((7,)), end, stream=False)
    assert told == [[begun(5)], [EngineOutput((6, 7, 8), finish_reason=FinishReason.LENGTH)]]


async def test_each_output_is_told_of_at_once_where_somebody_waits_for_it() -> None:
    steps = [begun(5), EngineOutput((6,)), EngineOutput((7,))]
    assert await told_of(*steps, stream=True, is_slow=True) == [[step] for step in steps]


async def test_tokens_that_are_held_back_are_told_of_after_a_while() -> None:
    told = await told_of(begun(5), EngineOutput((6,)), EngineOutput((7,)), stream=False)
    assert (told[0], [output.token_ids for report in told[1:] for output in report]) == ([begun(5)], [(6, 7)])


@pytest.mark.parametrize(
    "more", [EngineOutput((6,), (TokenLogprob(6, -1.0),)), EngineOutput((6,), prompt_logprobs=(None,))]
)
async def test_output_with_more_than_tokens_is_never_held_back(more: EngineOutput) -> None:
    assert await told_of(begun(5), more, stream=False) == [[begun(5)], [more]]
