"""What requests leave in vLLM's KV cache helps those that begin alike and never reaches others.

Every answer is held to the oracle's, which computes each request alone and afresh: a prefix of another adapter's or a
retrained adapter's old one would show in the log-probabilities.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

# What vLLM imports warns of what it imports.
pytestmark = [
    *(pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("default")),
    *(pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)),
]

pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from adapters.errors import InvalidAdapterError  # noqa: E402
from server.core.errors import MedleyError  # noqa: E402
from server.core.outputs import FinishReason  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest, ResolvedAdapter  # noqa: E402
from server.engine.vllm.config import VllmEngineConfig  # noqa: E402
from server.engine.vllm.engine import VllmEngine  # noqa: E402
from tests.fixtures.causal_models import (  # noqa: E402
    LORAS,
    PROMPTS,
    resolved,
    write_causal_adapters,
    write_causal_loras,
    write_llama,
)
from tests.fixtures.causal_oracle import Answer, Case, CausalOracle  # noqa: E402

BLOCK = 32
NUM_BLOCKS = 64
TEMPLATE = tuple(3 + number * 7 % 500 for number in range(3 * BLOCK))
# Its numbers are what the codec lets through, and yet its products end in infinity.
OVERFLOWING = {"r": 128, "lora_alpha": 128, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
LARGE = 65000.0
MIN_MARGIN = 1e-3
MAX_LOGPROB_ERROR = 1e-3


@dataclass
class Server:
    """A running engine over a base, its adapters, and how much of each request came out of the cache.

    Attributes:
        base: Folder of the base.
        adapters: Folder of the adapters.
        engine: The engine.
        num_cached: Request id → positions.
    """

    base: Path
    adapters: Path
    engine: VllmEngine
    num_cached: dict[str, int] = field(default_factory=dict)

    def resolved(self, name: str) -> ResolvedAdapter:
        return resolved(self.adapters, name)

    async def ask(
        self, name: str, case: Case, lora: ResolvedAdapter | None = None
    ) -> tuple[Answer, FinishReason | None, MedleyError | None]:
        """Send a request and return its answer and how it ended; ``lora`` stands for the case's own."""
        request = EngineRequest(
            name,
            case.token_ids,
            SamplingParams(max_new_tokens=case.max_new_tokens, num_logprobs=0),
            weight_adapter=lora or (self.resolved(case.lora) if case.lora else None),
            soft_prompt=self.resolved(case.prompt) if case.prompt else None,
        )
        outputs = [output async for output in self.engine.submit(request)]
        token_ids = tuple(token for output in outputs for token in output.token_ids)
        logprobs = tuple(each.logprob for output in outputs for each in output.logprobs)
        return Answer(token_ids, 0.0, logprobs), outputs[-1].finish_reason, outputs[-1].error

    async def check(self, name: str, case: Case, expected: Answer, lora: ResolvedAdapter | None = None) -> None:
        """Send a request and hold its answer to the oracle's."""
        kind = replace(case, token_ids=())
        assert expected.margin > MIN_MARGIN, kind
        answer, _, error = await self.ask(name, case, lora)
        assert error is None, (kind, error)
        assert answer.token_ids == expected.token_ids, kind
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=MAX_LOGPROB_ERROR), kind


@pytest.fixture(scope="module")
def num_cached() -> Iterator[dict[str, int]]:
    """Request id → positions that its prefill found in the cache."""
    from server.engine.vllm import mapping

    found: dict[str, int] = {}
    read = mapping.output

    def output(raw: object, request: EngineRequest, *rest: object) -> object:
        if raw.prefill_stats is not None:
            found[request.request_id] = raw.prefill_stats.num_cached_tokens
        return read(raw, request, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "output", output)
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, num_cached: dict[str, int]) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("prefix-caching")
    base = write_llama(folder / "base", seed=1)
    adapters = write_causal_adapters(folder / "adapters", base, seed=2)
    arguments = {"enforce_eager": True, "block_size": BLOCK, "num_gpu_blocks_override": NUM_BLOCKS}
    limits = {"max_num_seqs": 8, "max_loras": 3, "max_lora_rank": 128, "max_soft_prompts": 2}
    engine = VllmEngine(VllmEngineConfig(str(base), max_model_len=512, arguments=arguments, **limits))
    await engine.start()
    yield Server(base, adapters, engine, num_cached)
    await engine.stop()


@pytest.fixture(scope="module")
def oracle(server: Server) -> CausalOracle:
    return CausalOracle(server.base, server.adapters)


async def test_shared_soft_prompt_and_template_are_computed_once(server: Server, oracle: CausalOracle) -> None:
    cases = [Case((*TEMPLATE, *text), 8, prompt="prompt-40") for text in ((5, 6, 7), (9, 10), (11, 12, 13, 14))]
    for number, case in enumerate(cases):
        await server.check(f"shared-{number}", case, oracle.answer(case))
    whole_blocks = (len(TEMPLATE) + PROMPTS["prompt-40"]) // BLOCK * BLOCK
    assert [server.num_cached[f"shared-{number}"] for number in range(3)] == [0, whole_blocks, whole_blocks]


async def test_same_tokens_under_other_adapters_take_nothing_from_each_other(
    server: Server, oracle: CausalOracle
) -> None:
    text = (*TEMPLATE[::-1], 20, 21, 22)
    cases = [Case(text, 6, lora, prompt) for lora in (None, *LORAS) for prompt in (None, *PROMPTS)]
    wanted = [oracle.answer(case) for case in cases]
    assert len({answer.token_ids for answer in wanted}) > 20, "degenerate answers prove nothing"
    # A block of the longest soft prompt alone, which another text under the base may share, but no LoRA.
    await server.ask("soft-prompt", Case(TEMPLATE[::-2], 1, prompt="prompt-40"))
    for number, (case, expected) in enumerate(zip(cases, wanted, strict=True)):
        await server.check(f"crossing-{number}", case, expected)
        is_shared = (case.lora, case.prompt) == (None, "prompt-40")
        assert server.num_cached[f"crossing-{number}"] == (BLOCK if is_shared else 0)


async def test_same_request_again_comes_out_of_the_cache_and_is_the_same(server: Server, oracle: CausalOracle) -> None:
    text = (*TEMPLATE[5:], *TEMPLATE[:5], 30, 31)
    for lora, prompt in ((None, None), ("rslora-8", None), (None, "prompt-5"), ("rslora-8", "prompt-5")):
        case = Case(text, 6, lora, prompt)
        for time in ("first", "second"):
            await server.check(f"{lora}-{prompt}-{time}", case, oracle.answer(case))
        found = [server.num_cached[f"{lora}-{prompt}-{time}"] for time in ("first", "second")]
        assert found == [0, (len(text) + PROMPTS.get(prompt, 0)) // BLOCK * BLOCK]


async def test_retrained_adapter_of_the_same_folder_is_not_answered_out_of_the_old_ones_cache(
    server: Server, tmp_path: Path
) -> None:
    served = shutil.copytree(server.adapters, tmp_path / "served")
    write_causal_adapters(tmp_path / "retrained", server.base, seed=40)
    before, after = CausalOracle(server.base, served), CausalOracle(server.base, tmp_path / "retrained")
    case = Case((*TEMPLATE, 40, 41), 8, "qv-2")
    lora = resolved(served, "qv-2")
    await server.check("before", case, before.answer(case), lora)
    shutil.copytree(tmp_path / "retrained" / "qv-2", served / "qv-2", dirs_exist_ok=True)
    await server.check("after", case, after.answer(case), replace(lora, digest="f" * 64))
    assert server.num_cached["after"] == 0


async def test_overflowing_adapter_fails_alone_also_through_blocks_it_had(server: Server, oracle: CausalOracle) -> None:
    bad = write_overflowing(server)
    with pytest.raises(InvalidAdapterError, match="not finite"):
        await server.engine.check_adapter(bad)
    text = tuple((3 * step) % 500 + 3 for step in range(70))
    pairs = [(None, None), ("qv-2", None), (None, "prompt-40"), ("qv-2", "prompt-16")]
    cases = [Case((*text, 90 + number), 12, *pair) for number, pair in enumerate(pairs)]
    wanted = [oracle.answer(case) for case in cases]
    for turn in range(4):
        faulty = [
            # Nothing shared, so that each fills blocks of its own, which sound requests of later turns are given.
            server.ask(f"bad-{turn}-{number}", Case((100 + turn, 100 + number, *TEMPLATE), 4), bad)
            for number in range(6)
        ]
        sound = [
            server.check(f"sound-{turn}-{number}", case, expected)
            for number, (case, expected) in enumerate(zip(cases, wanted, strict=True))
        ]
        ends, _ = await asyncio.gather(asyncio.gather(*faulty), asyncio.gather(*sound))
        # On the CPU nobody looks at each row's logits: such a row may also end as if nothing were.
        assert {reason for _, reason, _ in ends} <= {FinishReason.ERROR, FinishReason.LENGTH, FinishReason.STOP}


def write_overflowing(server: Server) -> ResolvedAdapter:
    """Write a LoRA of sound files under which no logit is finite, and return it."""
    write_causal_loras(server.adapters, server.base, seed=1, loras={"overflowing": OVERFLOWING})
    weights = server.adapters / "overflowing" / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, LARGE) for name, tensor in load_file(weights).items()}, weights)
    return server.resolved("overflowing")
