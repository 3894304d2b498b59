"""Adapters of the largest values the codec takes, on the real engine: refused before they are ready, or harmless."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
pytest.importorskip("torch", reason="needs torch")

from adapters.base_spec import read_base_spec  # noqa: E402
from server.engine.factory import EngineConfig  # noqa: E402
from server.evaluation.config import EvaluationConfig  # noqa: E402
from server.settings import DEFAULT_MODEL  # noqa: E402
from tests.fixtures.adapters import CONFIG, WEIGHTS, Array, lora_tensors, safetensors_bytes  # noqa: E402
from tests.fixtures.front_end_clients import Call, Refused  # noqa: E402
from tests.fixtures.lifecycle_clients import HttpLifecycle, Labels  # noqa: E402
from tests.fixtures.running_server import RunningServer, running_server  # noqa: E402
from tests.hostile.cases import Files  # noqa: E402
from tests.hostile.left import left  # noqa: E402

BASE = read_base_spec(DEFAULT_MODEL)
LARGEST = 65504.0  # of float16: what the codec lets pass
TEXT = "Anna: Shall we meet at noon? Ben: Yes, at the station. Anna: Good, see you there."
_TYPE = {"task_type": "SEQ_2_SEQ_LM"}


def _files(config: Mapping[str, object], tensors: Mapping[str, Array], share_negative: float = 0.5) -> Files:
    """A folder whose every value is the largest, of either sign."""
    draws = np.random.default_rng(0)
    large = {
        name: np.where(draws.random(array.shape) < share_negative, -LARGEST, LARGEST) for name, array in tensors.items()
    }
    return {CONFIG: json.dumps(_TYPE | config).encode(), WEIGHTS: safetensors_bytes(large)}


def _loras(rank: int) -> dict[str, Array]:
    return lora_tensors(dict.fromkeys(BASE.linear_shapes, rank), BASE)


def _dora() -> Files:
    magnitudes = {
        f"base_model.model.{path}.lora_magnitude_vector": np.ones(out, np.float32)
        for path, (out, _) in BASE.linear_shapes.items()
    }
    return _files({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": True}, _loras(4) | magnitudes)


def _prefix() -> Files:
    width = BASE.num_heads * BASE.d_kv
    sizes = {"num_layers": BASE.num_decoder_layers, "num_attention_heads": BASE.num_heads, "token_dim": width}
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "num_transformer_submodules": 2, **sizes}
    return _files(config, {"prompt_embeddings": np.ones((4, 2 * BASE.num_decoder_layers * width))})


def _extremes() -> dict[str, Files]:
    gammas = {f"base_model.model.{path}.ln_tuning_layers.weight": np.ones(BASE.d_model) for path in BASE.norm_paths}
    scales = {f"base_model.model.{path}.ia3_l": np.ones((out, 1)) for path, (out, _) in BASE.linear_shapes.items()}
    prompt = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8, "num_transformer_submodules": 2}
    return {
        "lora": _files({"peft_type": "LORA", "r": 8, "lora_alpha": 8}, _loras(8)),
        "lora-of-one-sign": _files({"peft_type": "LORA", "r": 32, "lora_alpha": 32}, _loras(32), share_negative=0),
        "dora": _dora(),
        "ia3": _files({"peft_type": "IA3"}, scales),
        "norm": _files({"peft_type": "LN_TUNING"}, gammas),
        "prompt": _files(prompt, {"prompt_embeddings": np.ones((16, BASE.d_model))}),
        "prefix": _prefix(),
    }


EXTREMES = _extremes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(data_dir: Path) -> AsyncIterator[RunningServer]:
    engine = EngineConfig(name="native", model=str(DEFAULT_MODEL))
    async with running_server(data_dir, engine, evaluation=EvaluationConfig(warm_at_start=False)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[HttpLifecycle]:
    async with HttpLifecycle(server) as client:
        small = {name: array * 0.01 for name, array in _loras(4).items()}
        config = json.dumps(_TYPE | {"peft_type": "LORA", "r": 4, "lora_alpha": 4}).encode()
        await client.push("sound", {CONFIG: config, WEIGHTS: safetensors_bytes(small)})
        yield client


def _call(*adapters: str) -> Call:
    return Call(text=TEXT, adapters=adapters, sampling={"max_new_tokens": 12, "temperature": 0})


@pytest.mark.parametrize("family", EXTREMES)
async def test_adapter_of_the_largest_values_harms_nobody(client: HttpLifecycle, data_dir: Path, family: str) -> None:
    wanted = [(await client.summarize(_call(*adapters))).text for adapters in ((), ("sound",))]
    before = await asyncio.to_thread(left, data_dir)
    pushing = client.push(f"extreme-{family}", EXTREMES[family], Labels(alias="stable"))
    (outcome,) = await asyncio.gather(pushing, return_exceptions=True)
    if isinstance(outcome, Exception):
        assert isinstance(outcome, Refused)
        assert "not finite" in outcome.message
        assert await asyncio.to_thread(left, data_dir) == before
        return
    calls = [_call(), _call(f"extreme-{family}"), _call("sound"), _call(f"extreme-{family}")]
    base, *extreme, sound = await asyncio.gather(
        *(client.summarize(calls[at]) for at in (0, 1, 3, 2)), return_exceptions=True
    )
    assert [getattr(base, "text", base), getattr(sound, "text", sound)] == wanted
    for answer in extreme:
        # A row that overflows later, on its own text, fails alone.
        assert isinstance(answer, Refused) or answer.finish_reason in ("stop", "length", "error")  # type: ignore[union-attr]
