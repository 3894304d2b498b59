"""Every adapter family in one batch of the native engine, against transformers + PEFT, each request alone.

PEFT can neither mix families in one model nor put a soft prompt over an adapter in one call: the oracle loads a fresh
base for each weight adapter and, where a request has a prompt too, PEFT's prompt model around it.
"""

import asyncio
import random
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
peft = pytest.importorskip("peft", reason="the oracle is PEFT")

from transformers import T5ForConditionalGeneration  # noqa: E402

from adapters.base_spec import read_base_spec  # noqa: E402
from adapters.codec import CodecLimits, inspect_adapter  # noqa: E402
from adapters.errors import InvalidAdapterError  # noqa: E402
from server.core.errors import InvalidArgumentError  # noqa: E402
from server.core.outputs import FinishReason  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineOutput, EngineRequest, ResolvedAdapter  # noqa: E402
from server.engine.native.adapter_loading import AdapterLoader  # noqa: E402
from server.engine.native.adapter_payload import AdapterPayload  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from server.engine.native.layers.prefix import Prefix  # noqa: E402
from server.engine.native.layers.weight_adapter import WeightAdapter  # noqa: E402
from tests.fixtures.adapter_families import random_adapter, save, write_family  # noqa: E402
from tests.fixtures.t5_models import write_t5  # noqa: E402

# Beside the families that every test knows.
OWN = {
    "rslora": peft.LoraConfig(r=16, lora_alpha=4, use_rslora=True, task_type="SEQ_2_SEQ_LM"),
    # Scaled inputs of modules that are fused with others whose inputs are not.
    "ia3-inputs": peft.IA3Config(
        target_modules=["v", "wi", "wi_1"], feedforward_modules=["v", "wi", "wi_1"], task_type="SEQ_2_SEQ_LM"
    ),
}
WEIGHTS = ["lora", "dora", "lora-bias", "adalora", "loha", "vera", "ia3", "ia3-query", "norm", *OWN]
PROMPTS = ["prompt", "p-tuning", "multitask", "prefix"]
GATED = {
    "vocab_size": 4000,
    "d_model": 192,
    "d_kv": 32,
    "d_ff": 384,
    "num_layers": 4,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
# An odd number of layers, and heads that together are wider than the model.
RELU = {**GATED, "num_layers": 3, "num_heads": 7, "feed_forward_proj": "relu"}
MINI = Path(__file__).parents[2] / "adapters/library/medley-mini"
HOUSES = [
    "gated",
    "relu",
    pytest.param(
        "mini", marks=pytest.mark.skipif(not (MINI / "model.safetensors").exists(), reason="medley-mini is not there")
    ),
]
MAX_MODEL_LEN = 200
MIN_MARGIN = 1e-3
# Of the log-probabilities of a first step's five best tokens, where logits have a standard deviation of 14. PEFT in
# bfloat16 is as far from itself in float32: 0.18 on average, 0.94 at most; this engine 0.16 and 0.67, 0.78 or 1.05, by
# which rows joined the batch together. An adapter passed over moves them by 15.
MEAN_BFLOAT16_ERROR, MAX_BFLOAT16_ERROR = 0.25, 1.5


@dataclass(frozen=True)
class Case:
    """One request of the crowd; its adapters by name."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    weights: str | None
    prompt: str | None


@dataclass(frozen=True)
class Answer:
    """What the oracle says: tokens, smallest gap between the two best logits, first step's log-probabilities."""

    tokens: list[int]
    margin: float
    logprobs: torch.Tensor


class House:
    """A base, an adapter of every family for it, and the crowd that asks them.

    Args:
        folder: Where the adapters are written.
        base: Folder of the base.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.base, self._folder = base, folder
        self._spec = read_base_spec(base)
        self.cases = crowd(self._spec.vocab_size, seed=14)
        for seed, name in enumerate([*WEIGHTS, *PROMPTS]):
            if name in OWN:
                save(random_adapter(self._load(), OWN[name], seed), self._folder / name)
            else:
                write_family(name, self.base, self._folder / name, seed)
        self.answer = cache(self._answer)
        self._with_weights = cache(self._with_weights)

    def resolved(self, name: str) -> ResolvedAdapter:
        """An adapter as the codec finds it."""
        folder = self._folder / name
        found = inspect_adapter(folder, self._spec, CodecLimits(), name)
        return ResolvedAdapter(name, found.kind, folder, found.num_virtual_tokens, found.rank)

    def _load(self) -> T5ForConditionalGeneration:
        return T5ForConditionalGeneration.from_pretrained(self.base, dtype=torch.float32).eval()

    def _peft(self, model: T5ForConditionalGeneration, name: str) -> peft.PeftModel:
        with warnings.catch_warnings():
            # PEFT warns of lora_bias on layers without a bias, which T5's are.
            warnings.simplefilter("ignore")
            return peft.PeftModel.from_pretrained(model, self._folder / name).eval()

    def _with_weights(self, name: str | None) -> T5ForConditionalGeneration:
        return self._load() if name is None else self._peft(self._load(), name).get_base_model()

    @torch.inference_mode()
    def _answer(self, case: Case) -> Answer:
        model = self._with_weights(case.weights)
        if case.prompt is not None:
            model = self._peft(model, case.prompt)
        token_ids = torch.tensor([case.token_ids])
        output = model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=case.max_new_tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
            **({"task_ids": torch.tensor([0])} if case.prompt == "multitask" else {}),
        )
        best = torch.stack(output.logits)[:, 0].topk(2, dim=-1).values
        tokens = [token for token in output.sequences[0, 1:].tolist() if token != model.generation_config.eos_token_id]
        return Answer(tokens, float((best[:, 0] - best[:, 1]).min()), output.logits[0][0].log_softmax(dim=-1))


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> House:
    return write_house(tmp_path_factory.mktemp("gated"), GATED, is_tied=False)


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> House:
    return write_house(tmp_path_factory.mktemp("relu"), RELU, is_tied=True)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("mini"), MINI)


def write_house(folder: Path, shape: dict[str, object], *, is_tied: bool) -> House:
    """Return a house on a base with random weights."""
    return House(folder / "adapters", write_t5(folder / "base", shape, is_tied=is_tied, seed=5))


def crowd(vocab_size: int, seed: int) -> list[Case]:
    """Base rows, every family alone, every weight family under a soft prompt and under a prefix."""
    draw = random.Random(seed)
    pairs: list[tuple[str | None, str | None]] = [(None, None)] * 6
    pairs += [(name, None) for name in WEIGHTS for _ in range(2)]
    pairs += [(None, name) for name in PROMPTS for _ in range(2)]
    pairs += [(name, PROMPTS[index % 3]) for index, name in enumerate(WEIGHTS)]
    pairs += [(name, "prefix") for name in WEIGHTS]
    return [
        Case(
            token_ids=(*(draw.randrange(3, vocab_size) for _ in range(int(draw.triangular(1, 120, 20)))), 1),
            max_new_tokens=draw.choice([5, 9, 14, 20]),
            weights=weights,
            prompt=prompt,
        )
        for weights, prompt in pairs
    ]


@asynccontextmanager
async def running(house: House, dtype: str = "float32", device: str = "cpu") -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(
        NativeEngineConfig(
            model=str(house.base),
            device=device,
            dtype=dtype,
            max_num_seqs=20,
            max_num_batched_tokens=600,
            max_model_len=MAX_MODEL_LEN,
            max_new_tokens=20,
            max_loras=8,
            max_soft_prompts=3,
            max_virtual_tokens=8,
        )
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def serve(engine: NativeEngine, house: House, cases: list[Case], seed: int, **params: int) -> list[EngineOutput]:
    """Send the cases in a random order at random steps; return all of each one's output as one, in the given order."""
    draw = random.Random(seed)

    async def send(index: int) -> EngineOutput:
        case = cases[index]
        request = EngineRequest(
            f"{seed}-{index}",
            case.token_ids,
            SamplingParams(**{"max_new_tokens": case.max_new_tokens, **params}),
            weight_adapter=house.resolved(case.weights) if case.weights else None,
            soft_prompt=house.resolved(case.prompt) if case.prompt else None,
        )
        parts = [output async for output in engine.submit(request)]
        return EngineOutput(
            tuple(token for part in parts for token in part.token_ids),
            tuple(logprob for part in parts for logprob in part.logprobs),
            finish_reason=parts[-1].finish_reason,
            error=parts[-1].error,
        )

    tasks = {}
    for index in draw.sample(range(len(cases)), len(cases)):
        tasks[index] = asyncio.create_task(send(index))
        steps = engine.stats().num_steps + draw.choice([0, 0, 0, 1, 2])
        while engine.stats().num_steps < steps and engine.stats().num_running:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return [await tasks[index] for index in range(len(cases))]


async def compare(house: House, device: str) -> None:
    """Serve the crowd twice, in two orders, and hold both to the oracle."""
    cases = house.cases
    async with running(house, device=device) as engine:
        first = await serve(engine, house, cases, seed=1)
        second = await serve(engine, house, cases, seed=2)
        assert engine.stats().num_adapter_evictions > 0
    wanted = [house.answer(case) for case in cases]
    assert min(answer.margin for answer in wanted) > MIN_MARGIN
    for case, output, answer in zip(cases, first, wanted, strict=True):
        assert list(output.token_ids) == answer.tokens, (case.weights, case.prompt, output.error)
    assert [output.token_ids for output in second] == [output.token_ids for output in first]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", HOUSES)
async def test_engine_mixed_families_equal_each_request_alone(name: str, request: pytest.FixtureRequest) -> None:
    await compare(request.getfixturevalue(name), "cpu")


async def test_engine_prefix_takes_no_encoder_positions(gated: House) -> None:
    longest = Case((*range(3, MAX_MODEL_LEN + 2), 1), 20, "dora", "prefix")
    async with running(gated) as engine:
        [output] = await serve(engine, gated, [longest], seed=1)
        assert list(output.token_ids) == gated.answer(longest).tokens
        with pytest.raises(InvalidArgumentError):
            await serve(engine, gated, [replace(longest, prompt="prompt")], seed=1)


@pytest.mark.parametrize("name", HOUSES)
@pytest.mark.parametrize("adapter", [*WEIGHTS, *PROMPTS])
def test_oracle_without_an_adapter_answers_otherwise(name: str, adapter: str, request: pytest.FixtureRequest) -> None:
    """An engine that passed over a family, alone or under a prompt, would fail the test above."""
    house: House = request.getfixturevalue(name)
    role = "weights" if adapter in WEIGHTS else "prompt"
    cases = [case for case in house.cases if getattr(case, role) == adapter]
    changed = [house.answer(case).tokens != house.answer(replace(case, **{role: None})).tokens for case in cases]
    assert sum(changed) >= 2


@pytest.mark.timeout(600)
async def test_engine_mixed_families_in_bfloat16_stay_near_float32(gated: House) -> None:
    cases = gated.cases
    async with running(gated, "bfloat16") as engine:
        outputs = await serve(engine, gated, cases, seed=1, max_new_tokens=1, num_logprobs=5)
    errors, effects = [], dict.fromkeys([*WEIGHTS, *PROMPTS], 0.0)
    for case, output in zip(cases, outputs, strict=True):
        top = [token.token_id for token in output.logprobs[0].top]
        exact = gated.answer(case).logprobs[top]
        errors.append((torch.tensor([token.logprob for token in output.logprobs[0].top]) - exact).abs())
        for role, name in (("weights", case.weights), ("prompt", case.prompt)):
            if name is not None:
                without = gated.answer(replace(case, **{role: None})).logprobs[top]
                effects[name] = max(effects[name], float((without - exact).abs().max()))
    error = torch.stack(errors)
    assert error.max() < MAX_BFLOAT16_ERROR
    assert error.mean() < MEAN_BFLOAT16_ERROR
    assert min(effects.values()) > MAX_BFLOAT16_ERROR, "an adapter passed over would go unseen"


@pytest.mark.timeout(600)
async def test_engine_adapter_that_gives_nan_fails_its_rows_alone(
    gated: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that pass every check at load and overflow in the middle, in every kind of payload."""
    spoilt = {"dora", "ia3", "lora-bias", "norm", "prefix", "p-tuning"}
    cases = gated.cases
    monkeypatch.setattr(AdapterLoader, "load", _spoiling(AdapterLoader.load, spoilt))
    async with running(gated) as engine:
        outputs = await serve(engine, gated, cases, seed=3)
        for name in [*WEIGHTS, *PROMPTS]:
            if name in spoilt:
                with pytest.raises(InvalidAdapterError):
                    await engine.check_adapter(gated.resolved(name))
            else:
                await engine.check_adapter(gated.resolved(name))
    for case, output in zip(cases, outputs, strict=True):
        if {case.weights, case.prompt} & spoilt:
            assert output.finish_reason is FinishReason.ERROR, case
        else:
            assert list(output.token_ids) == gated.answer(case).tokens, (case.weights, case.prompt)


def _spoiling(
    load: Callable[[AdapterLoader, ResolvedAdapter], AdapterPayload], spoilt: set[str]
) -> Callable[[AdapterLoader, ResolvedAdapter], AdapterPayload]:
    """Return a loader some of whose adapters' payloads hold one NaN: in a vector where there are any."""

    @torch.inference_mode()
    def spoil(self: AdapterLoader, adapter: ResolvedAdapter) -> AdapterPayload:
        payload = load(self, adapter)
        if adapter.digest in spoilt:
            if isinstance(payload, WeightAdapter):
                tensor = next(iter(payload.vectors.values()))
            else:
                tensor = payload.values if isinstance(payload, Prefix) else payload
            tensor.view(-1)[-1] = float("nan")
        return payload

    return spoil
