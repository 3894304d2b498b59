"""What two processes say arrives as it was said, in whatever pieces."""

import socket

import pytest

from adapters.errors import WrongBaseError
from adapters.manifest import AdapterKind
from server.core.errors import InvalidArgumentError, ResourceExhaustedError
from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, EngineRequest, EngineStats, ResolvedAdapter
from server.engine.process import wire
from server.engine.process.tally import Tally
from server.observability.durations import DurationCounts

PLAIN = EngineOutput((7,))
ERROR = InvalidArgumentError("too long", param="prompt")
FULL = EngineOutput(
    (7, 8),
    logprobs=(TokenLogprob(7, -0.5, top=(TokenLogprob(9, -1.5),)), TokenLogprob(8, -0.1)),
    prompt_logprobs=(None, TokenLogprob(3, -2.0)),
    finish_reason=FinishReason.LENGTH,
    queue_s=0.25,
)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


@pytest.mark.parametrize("output", [PLAIN, FULL, EngineOutput(queue_s=0.0), EngineOutput(logprobs=FULL.logprobs)])
def test_output_arrives_as_it_was(output: EngineOutput) -> None:
    key, *_ = packed = wire.pack(12, output)
    assert (key, wire.unpack(packed)) == (12, output)


def test_output_of_a_token_alone_is_sent_as_plain_integers() -> None:
    assert wire.pack(12, PLAIN) == (12, (7,))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000, 1_000_000])
def test_messages_arrive_whole_and_in_order_in_whatever_pieces(tmp_path: object, size: int) -> None:
    lora = ResolvedAdapter("d", AdapterKind.LORA, path=tmp_path, rank=4)  # type: ignore[arg-type]
    request = EngineRequest("a", tuple(range(300)), SamplingParams(temperature=0.5, seed=3), lora, deadline_s=1.5)
    sent = [wire.Submit(1, request), wire.Abort(1), wire.Call(2, "pin_adapter", lora), wire.Unpin("d")]
    got: list[object] = []
    end = wire.Wire(got.append, lambda: None)
    for piece in pieces_of(b"".join(map(wire.frame, sent)), size):
        end.data_received(piece)
    assert got == sent
    assert [type(each) for each in got] == [type(each) for each in sent]


def test_first_message_is_read_and_nothing_behind_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.frame("first") + b"rest")
        assert wire.read_message(ours) == "first"
        assert ours.recv(10) == b"rest"
        theirs.close()
        with pytest.raises(EOFError):
            wire.read_message(ours)


def test_errors_arrive_with_their_class_message_and_more() -> None:
    sent = (ERROR, WrongBaseError("made for another"), ResourceExhaustedError("full", param="n", retry_after_s=2.0))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.frame(sent))
        got = wire.read_message(ours)
    assert [(type(each), vars(each)) for each in got] == [(type(each), vars(each)) for each in sent]


def report(stats: EngineStats, **changed: object) -> wire.Report:
    told = {"resident": None, "load_times": None, "outputs": [], "answers": [], **changed}
    return wire.Report(wire.counters_of(stats), wire.levels_of(stats), **told)


def test_tally_keeps_what_was_not_told_anew_and_goes_on_counting_after_a_death() -> None:
    times = DurationCounts((1, *(0,) * 13), 0.5)
    busy = EngineStats(alive=True, num_waiting=9, num_running=2, num_steps=5, num_adapter_loads=1)
    tally = Tally()
    tally.take(report(busy, resident=("d",), load_times=times))
    tally.take(report(busy))
    assert (tally.num_running, tally.resident, tally.load_times) == (2, ("d",), times)
    assert (tally.counters["num_steps"], tally.counters["num_adapter_loads"]) == (5, 1)
    tally.died()
    assert (tally.num_running, tally.resident, tally.load_times) == (0, (), times)
    tally.take(report(busy, resident=("e",), load_times=times))
    assert (tally.counters["num_steps"], tally.resident) == (10, ("e",))
    assert (tally.load_times.counts[0], tally.load_times.sum_s) == (2, 1.0)


def test_every_number_of_the_stats_is_told() -> None:
    numbers = {name for name in EngineStats.__slots__ if name.startswith("num_")}
    # What waits is counted on the server's side.
    assert numbers == {*wire.COUNTERS, *wire.LEVELS, "num_waiting"}
