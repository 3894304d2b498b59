"""Sampling parameters through the whole engine, in a crowd, against transformers."""

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from transformers import T5ForConditionalGeneration  # noqa: E402

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from tests.fixtures.t5_models import TINY, write_t5  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_t5(folder, TINY, is_tied=False, seed=1)
    return folder


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[NativeEngine]:
    made = NativeEngine(NativeEngineConfig(str(base), device="cpu", num_threads=1, max_model_len=64))
    await made.start()
    yield made
    await made.stop()


def ask(name: str, **params: object) -> EngineRequest:
    return EngineRequest(name, tuple(range(3, 23)), SamplingParams(**params))  # type: ignore[arg-type]


async def tokens(engine: NativeEngine, request: EngineRequest) -> list[int]:
    return [token for output in [each async for each in engine.submit(request)] for token in output.token_ids]


@pytest.mark.parametrize(
    ("params", "theirs"),
    [
        ({"ignore_eos": True, "logit_bias": ((1, 100.0),)}, {"sequence_bias": {(1,): 100.0}, "eos_token_id": 2}),
        ({"min_new_tokens": 4, "logit_bias": ((1, 100.0),)}, {"sequence_bias": {(1,): 100.0}, "min_new_tokens": 4}),
        (
            {"stop_token_ids": (40,), "logit_bias": ((40, 100.0),)},
            {"sequence_bias": {(40,): 100.0}, "eos_token_id": 40},
        ),
        ({"repetition_penalty": 1.8, "min_new_tokens": 12}, {"repetition_penalty": 1.8, "min_new_tokens": 12}),
    ],
)
async def test_sampling_parameters_give_the_tokens_transformers_gives(
    engine: NativeEngine, base: Path, params: dict[str, object], theirs: dict[str, object]
) -> None:
    request = ask("a", max_new_tokens=12, **params)
    crowd = [ask(str(index), max_new_tokens=9, temperature=1.0, min_p=0.1) for index in range(3)]
    found, *_ = await asyncio.gather(*(tokens(engine, each) for each in (request, *crowd)))
    model = T5ForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    config = copy.deepcopy(model.generation_config)
    config.update(**{"max_new_tokens": 12, "do_sample": False, **theirs})
    wanted = model.generate(torch.tensor([request.prompt_token_ids]), generation_config=config)[0, 1:].tolist()
    end = theirs.get("eos_token_id", 1)
    assert found == (wanted[:-1] if wanted[-1] == end else wanted)
