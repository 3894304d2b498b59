"""A generation whose reader falls behind: what is there comes in one chunk, and nothing is lost."""

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


def _generation(stream: OutputStream, stop: tuple[str, ...] = ()) -> Generation:
    metrics = Metrics()
    sampling = SamplingParams(max_new_tokens=16, stop=stop)
    return Generation(
        Opened("one", (), Prompt((3,), "?"), Echo.NO, sampling, 0.0),
        stream,
        tokenizer=ByteTokenizer(),
        is_continued=False,
        hooks=Hooks(
            abort=lambda: None,
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
