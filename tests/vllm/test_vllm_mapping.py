"""What vLLM makes of the parameters and prompts it is handed, and what is read out of its answers.

vLLM runs inside this process here: what is tried is the mapping, not the engine around it.
"""

import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")
with warnings.catch_warnings():
    # What vLLM imports warns of what it imports.
    warnings.simplefilter("default")
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.executor import Executor

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from vllm.exceptions import VLLMError
from vllm.v1.engine import EngineCoreOutput

from adapters.base_spec import read_base_spec
from server.core.errors import InvalidArgumentError
from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import MAX_SEED, Grammar, SamplingParams
from server.engine.base import EngineOutput, EngineRequest, ResolvedAdapter
from server.engine.vllm import capabilities, mapping
from server.engine.vllm.config import VllmEngineConfig, engine_arguments, engine_config
from server.engine.vllm.core import NotFiniteError
from server.engine.vllm.logs import write_logging_config
from server.engine.vllm.soft_prompts import read_soft_prompt
from tests.fixtures.causal_models import resolved, write_causal_loras, write_causal_prompts, write_llama

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TEXT = (1, 40, 41, 42, 43, 44)
EOS = 2
ARGUMENTS = {"distributed_executor_backend": "uni", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}


class Vllm:
    """A vLLM in this process, driven by hand; and the same base in transformers."""

    def __init__(self, model: Path, adapters: Path, logging_file: Path) -> None:
        write_logging_config(logging_file)
        config = VllmEngineConfig(str(model), max_model_len=512, max_loras=2, max_num_seqs=8, arguments=ARGUMENTS)
        base = read_base_spec(model)
        vllm_config = engine_config(engine_arguments(config, model, base, logging_file))
        self._inputs = InputProcessor(vllm_config)
        self._client = EngineCoreClient.make_client(
            multiprocess_mode=False,
            asyncio_mode=False,
            vllm_config=vllm_config,
            executor_class=Executor.get_class(vllm_config),
            log_stats=True,
        )
        self.prompts = {
            name: (
                adapter := resolved(adapters, name),
                read_soft_prompt(adapter.path, base, torch.float32, max_virtual_tokens=128),
            )
            for name in ("prompt-5", "prompt-40")
        }
        self.lora = resolved(adapters, "rslora-8")
        self._client.add_lora(mapping.lora_request(self.lora.digest, 1, self.lora.path))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.reference: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._numbers = itertools.count()

    def close(self) -> None:
        self._client.shutdown()

    def raw_outputs(self, *requests: EngineRequest) -> list[list[EngineCoreOutput]]:
        """Return what vLLM answers to requests that are in one batch."""
        found: dict[str, list[EngineCoreOutput]] = {}
        for request in requests:
            soft_prompt = next(
                (rows for adapter, rows in self.prompts.values() if adapter == request.soft_prompt), None
            )
            lora = request.weight_adapter
            raw = self._inputs.process_inputs(
                f"request-{next(self._numbers)}",
                mapping.prompt(request, soft_prompt),
                mapping.sampling_params(request.sampling),
                supported_tasks=("generate",),
                lora_request=lora and mapping.lora_request(lora.digest, 1, lora.path),
            )
            self._inputs.assign_request_id(raw)
            found[raw.request_id] = []
            self._client.add_request(raw)
        while not all(outputs and outputs[-1].finished for outputs in found.values()):
            for output in self._client.get_output().outputs:
                found[output.request_id].append(output)
        return list(found.values())

    def generate(self, *requests: EngineRequest) -> list[EngineOutput]:
        """Return the answers, the outputs of each put together."""
        return [
            _joined([mapping.output(raw, request, None if number else 0.0) for number, raw in enumerate(raws)])
            for request, raws in zip(requests, self.raw_outputs(*requests), strict=True)
        ]

    def logits(self, token_ids: Sequence[int], soft_prompt: str | None = None) -> torch.Tensor:
        """Return the base's logits at each position of a sequence, virtual ones included."""
        with torch.no_grad():
            rows = self.reference.model.embed_tokens(torch.tensor(token_ids))
            if soft_prompt is not None:
                prompt = self.prompts[soft_prompt][1]
                rows = torch.cat([prompt.rows(prompt.num_virtual_tokens), rows])
            return self.reference(inputs_embeds=rows[None]).logits[0]

    def greedy(self, sampling: SamplingParams, soft_prompt: str | None = None) -> tuple[int, ...]:
        """Return the greedy answer to ``TEXT``, penalties and biases written out plainly."""
        answer: list[int] = []
        for _ in range(sampling.max_new_tokens or 0):
            logits = self.logits((*TEXT, *answer), soft_prompt)[-1]
            for token in {*TEXT, *answer}:
                logits[token] *= 1 / sampling.repetition_penalty if logits[token] > 0 else sampling.repetition_penalty
            for token in set(answer):
                logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * answer.count(token)
            for token, bias in sampling.logit_bias:
                logits[token] += bias
            answer.append(int(logits.argmax()))
        return tuple(answer)

    def request(self, sampling: SamplingParams, soft_prompt: str | None = None) -> EngineRequest:
        """Return a request for ``TEXT``."""
        return EngineRequest("request", TEXT, sampling, soft_prompt=soft_prompt and self.prompts[soft_prompt][0])


def _joined(outputs: list[EngineOutput]) -> EngineOutput:
    assert [output.finish_reason is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert [output.queue_s is not None for output in outputs] == [True] + [False] * (len(outputs) - 1)
    return replace(
        outputs[-1],
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
        prompt_logprobs=outputs[0].prompt_logprobs,
        queue_s=outputs[0].queue_s,
    )


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder = tmp_path_factory.mktemp("vllm")
    model = write_llama(folder / "llama", seed=1)
    write_causal_loras(folder / "adapters", model, seed=2)
    write_causal_prompts(folder / "adapters", model, seed=3)
    running = Vllm(model, folder / "adapters", folder / "logging.json")
    yield running
    running.close()


SOFT_PROMPTS = pytest.mark.parametrize("soft_prompt", [None, "prompt-5", "prompt-40"])


@SOFT_PROMPTS
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_new_tokens=12),
        SamplingParams(max_new_tokens=12, repetition_penalty=1.8),
        SamplingParams(max_new_tokens=12, presence_penalty=1.9),
        SamplingParams(max_new_tokens=24, frequency_penalty=1.5),
        SamplingParams(max_new_tokens=4, logit_bias=((7, 60.0), (9, -100.0))),
        SamplingParams(max_new_tokens=8, temperature=1.0, min_p=1.0),
        SamplingParams(max_new_tokens=8, temperature=1.0, top_k=1, seed=1),
        SamplingParams(max_new_tokens=8, temperature=1.0, top_p=1e-6),
    ],
)
def test_tokens_of_a_request_are_those_of_transformers(
    vllm: Vllm, sampling: SamplingParams, soft_prompt: str | None
) -> None:
    (output,) = vllm.generate(vllm.request(sampling, soft_prompt))
    assert output.token_ids == vllm.greedy(sampling, soft_prompt)
    assert output.finish_reason is FinishReason.LENGTH


@SOFT_PROMPTS
def test_logprobs_are_of_the_raw_logits_whatever_the_temperature(vllm: Vllm, soft_prompt: str | None) -> None:
    sampling = SamplingParams(max_new_tokens=6, temperature=2.0, seed=5, num_logprobs=3, repetition_penalty=1.5)
    # A neighbour that asks for more must not lengthen the lists.
    output, neighbour = vllm.generate(
        vllm.request(sampling, soft_prompt), vllm.request(replace(sampling, num_logprobs=7, seed=6))
    )
    expected = vllm.logits((*TEXT, *output.token_ids), soft_prompt).log_softmax(-1)[-7:-1]
    _assert_logprobs(output.logprobs, output.token_ids, expected, num_logprobs=3)
    assert {len(entry.top) for entry in neighbour.logprobs} == {7}


def test_logprobs_without_alternatives_are_those_of_the_tokens_alone(vllm: Vllm) -> None:
    (output,) = vllm.generate(vllm.request(SamplingParams(max_new_tokens=3, num_logprobs=0)))
    assert [(entry.token_id, entry.top) for entry in output.logprobs] == [(token, ()) for token in output.token_ids]


@SOFT_PROMPTS
def test_prompt_logprobs_leave_virtual_positions_out(vllm: Vllm, soft_prompt: str | None) -> None:
    request = vllm.request(SamplingParams(max_new_tokens=2, num_prompt_logprobs=2), soft_prompt)
    (output,) = vllm.generate(request)
    logprobs = vllm.logits(TEXT, soft_prompt).log_softmax(-1)
    if soft_prompt is None:
        assert output.prompt_logprobs[0] is None
        _assert_logprobs(output.prompt_logprobs[1:], TEXT[1:], logprobs[:-1], num_logprobs=2)
    else:
        _assert_logprobs(output.prompt_logprobs, TEXT, logprobs[-len(TEXT) - 1 : -1], num_logprobs=2)


def test_prompt_logprobs_of_a_long_prompt_are_whole_and_equal_when_its_cache_is_warm(vllm: Vllm) -> None:
    text = tuple(1 + number % 500 for number in range(300))
    request = EngineRequest("request", text, SamplingParams(max_new_tokens=1, num_prompt_logprobs=0))
    (cold,) = vllm.generate(request)
    (warm,) = vllm.generate(request)
    assert len(cold.prompt_logprobs) == len(text)
    assert [entry and entry.logprob for entry in cold.prompt_logprobs] == pytest.approx(
        [entry and entry.logprob for entry in warm.prompt_logprobs], abs=1e-5
    )


def _assert_logprobs(
    entries: Sequence[TokenLogprob | None], token_ids: Sequence[int], expected_LV: torch.Tensor, num_logprobs: int
) -> None:
    assert [entry and entry.token_id for entry in entries] == list(token_ids)
    for entry, token_id, expected_V in zip(entries, token_ids, expected_LV, strict=True):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(expected_V[token_id]), abs=1e-3)
        best = expected_V.topk(num_logprobs)
        assert [each.token_id for each in entry.top] == best.indices.tolist()
        assert [each.logprob for each in entry.top] == pytest.approx(best.values.tolist(), abs=1e-3)


def test_same_seed_gives_the_same_tokens_and_another_seed_others(vllm: Vllm) -> None:
    def draw(seed: int | None) -> EngineRequest:
        return vllm.request(SamplingParams(max_new_tokens=16, temperature=1.5, seed=seed))

    outputs = vllm.generate(draw(7), draw(MAX_SEED), draw(7), draw(None), draw(None))
    answers = [output.token_ids for output in outputs]
    assert answers[0] == answers[2]
    assert len(set(answers)) == 4


def test_stop_token_ends_the_text_and_is_not_part_of_it(vllm: Vllm) -> None:
    tokens = vllm.greedy(SamplingParams(max_new_tokens=8))
    stop = next(token for number, token in enumerate(tokens) if number >= 3 and token not in tokens[:number])
    sampling = SamplingParams(max_new_tokens=8, stop_token_ids=(stop,), num_logprobs=1)
    (output,) = vllm.generate(vllm.request(sampling))
    assert output.token_ids == tokens[: tokens.index(stop)]
    assert output.finish_reason is FinishReason.STOP
    assert [entry.token_id for entry in output.logprobs] == [*output.token_ids, stop]


WANTS_TO_END = ((EOS, 100.0),)


def test_end_of_sequence_ends_the_text_and_is_not_part_of_it(vllm: Vllm) -> None:
    (output,) = vllm.generate(vllm.request(SamplingParams(max_new_tokens=8, logit_bias=WANTS_TO_END)))
    assert (output.token_ids, output.finish_reason) == ((), FinishReason.STOP)


def test_ignored_end_of_sequence_is_a_token_like_others(vllm: Vllm) -> None:
    sampling = SamplingParams(max_new_tokens=4, logit_bias=WANTS_TO_END, ignore_eos=True)
    (output,) = vllm.generate(vllm.request(sampling))
    assert (output.token_ids, output.finish_reason) == ((EOS,) * 4, FinishReason.LENGTH)


def test_text_does_not_end_before_min_new_tokens(vllm: Vllm) -> None:
    sampling = SamplingParams(max_new_tokens=8, logit_bias=WANTS_TO_END, min_new_tokens=5)
    (output,) = vllm.generate(vllm.request(sampling))
    assert len(output.token_ids) == 5
    assert EOS not in output.token_ids
    assert output.finish_reason is FinishReason.STOP


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


@SOFT_PROMPTS
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("choice", json.dumps(["yes please", "no"])), r"yes please|no"),
        (Grammar("regex", r"[a-c]{3}-\d\d"), r"[a-c]{3}-\d\d"),
        (Grammar("json", json.dumps(SCHEMA)), r'\{\s*"ok"\s*:\s*(true|false)\s*,\s*"size"\s*:\s*"[sm]"\s*\}'),
        (Grammar("grammar", 'root ::= "one" | "two" "!"'), r"one|two!"),
    ],
)
def test_text_matches_its_grammar(vllm: Vllm, grammar: Grammar, pattern: str, soft_prompt: str | None) -> None:
    # JSON may have any white space between its parts, and this model would choose it for ever.
    spaces = tuple((token, -100.0) for token in range(512) if vllm.tokenizer.decode([token]).isspace())
    sampling = SamplingParams(max_new_tokens=100, grammar=grammar, temperature=1.0, seed=3, logit_bias=spaces)
    (output,) = vllm.generate(vllm.request(sampling, soft_prompt))
    assert re.fullmatch(pattern, vllm.tokenizer.decode(output.token_ids))
    assert output.finish_reason is FinishReason.STOP


def test_any_json_object_begins_as_one(vllm: Vllm) -> None:
    (output,) = vllm.generate(vllm.request(SamplingParams(max_new_tokens=20, grammar=Grammar("json_object"))))
    assert vllm.tokenizer.decode(output.token_ids).lstrip().startswith("{")


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (SamplingParams(temperature=2.5), "temperature"),
        (SamplingParams(stop_token_ids=(100_000,)), "stop_token_ids"),
        (SamplingParams(logit_bias=((100_000, 1.0),)), "logit_bias"),
        (SamplingParams(grammar=Grammar("json", '{"type": "no-such-type-7f3a"}')), None),
        (SamplingParams(grammar=Grammar("regex", "(")), None),
        (SamplingParams(grammar=Grammar("grammar", "root ::= nothing-7f3a")), None),
        (SamplingParams(grammar=Grammar("choice", "[1]")), "grammar"),
        (SamplingParams(grammar=Grammar("choice", "[")), "grammar"),
    ],
)
def test_what_vllm_refuses_is_an_invalid_argument(vllm: Vllm, sampling: SamplingParams, param: str | None) -> None:
    with pytest.raises((VLLMError, InvalidArgumentError)) as raised:
        vllm.generate(vllm.request(sampling))
    error = mapping.error(raised.value)
    assert isinstance(error, InvalidArgumentError)
    assert param in (None, error.param)


@SOFT_PROMPTS
def test_shared_beginning_is_read_from_the_cache_but_never_another_adapters(
    vllm: Vllm, soft_prompt: str | None
) -> None:
    # Of its own for each case.
    first = 100 + len(soft_prompt or "")
    template = tuple(first + number % 300 for number in range(256))
    sampling = SamplingParams(max_new_tokens=1)

    def num_cached(text: tuple[int, ...], lora: ResolvedAdapter | None = None, prompt: str | None = soft_prompt) -> int:
        adapter = prompt and vllm.prompts[prompt][0]
        (outputs,) = vllm.raw_outputs(EngineRequest("request", text, sampling, lora, adapter))
        assert outputs[0].prefill_stats is not None
        return outputs[0].prefill_stats.num_cached_tokens

    assert num_cached((*template, 5, 6)) == 0
    assert num_cached((*template, 7, 8, 9)) >= 256
    assert num_cached((*template, 7, 8, 9), lora=vllm.lora) == 0
    other = {None: "prompt-5", "prompt-5": "prompt-40", "prompt-40": "prompt-5"}[soft_prompt]
    assert num_cached((*template, 7, 8, 9), prompt=other) == 0


def test_row_that_vllm_could_not_compute_ends_with_an_error() -> None:
    request = EngineRequest("request", TEXT, SamplingParams())
    output = mapping.output(EngineCoreOutput("request", [3], num_nans_in_logits=4), request)
    assert output.finish_reason is FinishReason.ERROR
    assert isinstance(output.error, NotFiniteError)


def test_time_in_vllms_queue_is_added_to_the_time_before(vllm: Vllm) -> None:
    request = vllm.request(SamplingParams(max_new_tokens=1))
    ((raw,),) = vllm.raw_outputs(request)
    waited_s = mapping.output(raw, request, held_s=0.0).queue_s
    assert waited_s is not None
    assert 0.0 <= waited_s < 5.0
    assert mapping.output(raw, request, held_s=2.0).queue_s == pytest.approx(2.0 + waited_s)
    assert math.isfinite(waited_s)


def test_every_feature_that_is_claimed_is_tried_here() -> None:
    assert {feature.name for feature in capabilities.FEATURES} == {
        *("REPETITION_PENALTY", "PRESENCE_AND_FREQUENCY_PENALTY", "MIN_NEW_TOKENS", "IGNORE_EOS", "MIN_P"),
        *("LOGIT_BIAS", "STOP_TOKEN_IDS", "GRAMMAR", "PROMPT_LOGPROBS"),
    }
