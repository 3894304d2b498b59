"""A generation whose reader falls behind: what is there comes in one chunk. One that nobody reads: all of it does."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from server.core.outputs import FinishReason, GenerationChunk, TokenLogprob
from server.core.request import Echo
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput
from server.engine.streams import OutputStream
from server.observability.metrics import Metrics
from server.service.generation import Generation, Hooks, Opened
from server.service.prompts import Prompt
from server.service.tokenizer import ByteTokenizer


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(ByteTokenizer().encode(text, add_special_tokens=False))


def _generation(
    stream: OutputStream,
    stop: tuple[str, ...] = (),
    *,
    tokenizer: ByteTokenizer | None = None,
    metrics: Metrics | None = None,
    abort: Callable[[], None] = lambda: None,
) -> Generation:
    metrics = metrics or Metrics()
    sampling = SamplingParams(max_new_tokens=16, stop=stop)
    return Generation(
        Opened("one", (), Prompt((3,), "?"), Echo.NO, sampling, 0.0),
        stream,
        tokenizer=tokenizer or ByteTokenizer(),
        is_continued=False,
        hooks=Hooks(
            abort=abort,
            finished=lambda _text, _chunk: None,
            closed=lambda _chunk: None,
            told=lambda _chunk, _milestones: None,
        ),
        metrics=metrics,
        figures=metrics.of(()),
        score_wait_s=0.0,
    )


def _stream(*outputs: EngineOutput) -> OutputStream:
    stream = OutputStream(lambda: None)
    for output in outputs:
        stream.put(output)
    return stream


async def test_generation_whose_reader_is_behind_joins_what_is_there() -> None:
    stream = _stream(
        EngineOutput(_token_ids("a"), (TokenLogprob(1, -1.0),), queue_s=0.0),
        EngineOutput(_token_ids("b"), (TokenLogprob(2, -2.0),)),
    )
    generation = _generation(stream)

    first = await anext(generation)
    stream.put(EngineOutput(_token_ids("c"), finish_reason=FinishReason.LENGTH))
    rest = [chunk async for chunk in generation]

    assert (first.text, first.num_tokens) == ("ab", 2)
    assert [entry.logprob for entry in first.logprobs] == [-1.0, -2.0]
    assert [(chunk.text, chunk.num_tokens) for chunk in rest] == [("c", 1), ("", 0)]
    assert rest[-1].finish_reason is FinishReason.LENGTH


async def test_generation_whose_reader_is_behind_counts_no_token_after_its_stop_string() -> None:
    outputs = [EngineOutput(_token_ids(letter)) for letter in "abcd"]

    chunks: list[GenerationChunk] = [chunk async for chunk in _generation(_stream(*outputs), stop=("c",))]

    assert [chunk.text for chunk in chunks] == ["ab", ""]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.num_completion_tokens == 3


class _CountingTokenizer(ByteTokenizer):
    num_decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        # Those of single tokens, for their log-probabilities, are with them.
        self.num_decoded += skip_special_tokens
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


async def test_whole_answer_is_what_its_stream_adds_up_to_and_is_decoded_once() -> None:
    def outputs() -> list[EngineOutput]:
        pieces = [EngineOutput((token,), (TokenLogprob(token, -1.0),)) for token in _token_ids("a grüß€ b")]
        return [replace(pieces[0], queue_s=0.5), *pieces[1:], EngineOutput(finish_reason=FinishReason.STOP)]

    stream, tokenizer = OutputStream(lambda: None), _CountingTokenizer()
    waiting = asyncio.create_task(_generation(stream, tokenizer=tokenizer).result())
    for output in outputs():
        await asyncio.sleep(0)
        stream.put(output)
    result = await waiting
    num_decoded = tokenizer.num_decoded
    chunks = [chunk async for chunk in _generation(_stream(*outputs()))]

    assert result.text == "".join(chunk.text for chunk in chunks) == "a grüß€ b"
    assert [entry.token_id for entry in result.logprobs] == list(_token_ids("a grüß€ b"))
    assert result.timings.queue_ms == 500.0
    assert num_decoded < 5


async def test_times_between_tokens_of_a_whole_answer_are_taken_as_they_come() -> None:
    metrics, stream = Metrics(), OutputStream(lambda: None)
    waiting = asyncio.create_task(_generation(stream, metrics=metrics).result())
    await asyncio.sleep(0)
    stream.put(EngineOutput(_token_ids("a"), queue_s=0.0))
    first = metrics.registry.get_sample_value("medley_request_ttft_seconds_count", {"adapters": "base"})
    stream.put(EngineOutput(_token_ids("b")))
    between = metrics.registry.get_sample_value("medley_inter_token_seconds_count")
    stream.put(EngineOutput(_token_ids("c"), finish_reason=FinishReason.LENGTH))

    assert (first, between, (await waiting).usage.num_completion_tokens) == (1, 1, 3)


async def test_whole_answer_that_is_given_up_frees_its_row_and_takes_no_more() -> None:
    metrics, stream, aborted = Metrics(), OutputStream(lambda: None), list[str]()
    waiting = asyncio.create_task(_generation(stream, metrics=metrics, abort=lambda: aborted.append("one")).result())
    await asyncio.sleep(0)
    stream.put(EngineOutput(_token_ids("a"), queue_s=0.0))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    stream.put(EngineOutput(_token_ids("b")))
    stream.put(EngineOutput(finish_reason=FinishReason.ABORT))

    assert aborted == ["one"]
    assert metrics.registry.get_sample_value("medley_inter_token_seconds_count") == 0


async def test_whole_answer_ends_at_its_stop_string_while_the_engine_goes_on() -> None:
    stream, aborted = OutputStream(lambda: None), list[str]()
    generation = _generation(stream, stop=("b",), abort=lambda: aborted.append("one"))
    waiting = asyncio.create_task(generation.result())
    for letter in "abc":
        stream.put(EngineOutput(_token_ids(letter)))
    result = await waiting

    assert (result.text, result.finish_reason, aborted) == ("a", FinishReason.STOP, ["one"])
