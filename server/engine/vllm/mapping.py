"""Ours to vLLM's types and back: sampling parameters, prompts, LoRAs, outputs, errors. All of it is on the hot path.

Knows no queue, no process and no residency. Pure functions, any thread.

Shapes: P virtual tokens, L positions of a prompt, virtual ones included.

Source:
    vLLM 0.32.0: ``vllm/sampling_params.py``, ``vllm/inputs/engine.py``, ``vllm/outputs.py``, ``vllm/exceptions.py``.
"""

import json
from pathlib import Path

import vllm
from vllm.exceptions import GracefulHTTPError, RetryableRequestError, VLLMClientError
from vllm.inputs.engine import EmbedsInput, TokensInput, embeds_input, tokens_input
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.core.errors import (
    InternalError,
    InvalidArgumentError,
    MedleyError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import Grammar, SamplingParams
from server.engine.base import EngineOutput, EngineRequest
from server.engine.vllm.soft_prompts import SoftPrompts

# What vLLM itself raises such temperatures to, with a warning in the log for each.
_LEAST_TEMPERATURE = 0.01
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}
_PARAMS = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "structured_outputs": "grammar"}


def sampling_params(sampling: SamplingParams) -> vllm.SamplingParams:
    """Return vLLM's sampling parameters of one request; they must not serve another.

    vLLM's repetition penalty counts the prompt's tokens too, as ``transformers`` does where prompt and answer are one
    sequence. Stop strings stay with the service.

    Raises:
        InvalidArgumentError: If vLLM does not take a value; ``param`` names the field.
    """
    is_greedy = sampling.temperature == 0.0
    try:
        return vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            min_tokens=sampling.min_new_tokens,
            ignore_eos=sampling.ignore_eos,
            temperature=0.0 if is_greedy else max(sampling.temperature, _LEAST_TEMPERATURE),
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            stop_token_ids=list(sampling.stop_token_ids),
            structured_outputs=_structured_outputs(sampling.grammar),
            logprobs=sampling.num_logprobs,
            prompt_logprobs=sampling.num_prompt_logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
    except VLLMClientError as refused:
        raise error(refused) from refused


def prompt(request: EngineRequest, soft_prompts: SoftPrompts) -> TokensInput | EmbedsInput:
    """Return what vLLM continues: the prompt's tokens, behind the rows of its soft prompt if it has one.

    Args:
        request: The request.
        soft_prompts: Holds the rows of ``request.soft_prompt``.
    """
    token_ids = list(request.prompt_token_ids)
    if request.soft_prompt is None:
        return tokens_input(token_ids)
    num_virtual_tokens = request.soft_prompt.num_virtual_tokens
    return embeds_input(
        soft_prompts.rows(request.soft_prompt.digest, num_virtual_tokens + len(token_ids)),
        # Penalties count the ids at virtual positions as well. One that the prompt has anyway changes nothing there.
        prompt_token_ids=[token_ids[0]] * num_virtual_tokens + token_ids,
        is_token_ids=[False] * num_virtual_tokens + [True] * len(token_ids),
    )


def lora_request(digest: str, int_id: int, path: Path) -> LoRARequest:
    """Return vLLM's name for a LoRA. It keys the prefix cache by name and path, and its own table by the number.

    Args:
        digest: The adapter's identity.
        int_id: From 1; must not have meant another digest while vLLM held that one.
        path: Folder with its PEFT files.
    """
    return LoRARequest(digest, int_id, str(path))


def output(raw: RequestOutput, request: EngineRequest, submitted_s: float | None = None) -> EngineOutput:
    """Return what one output of vLLM adds to a request.

    The token that ended the text is not in it. A row that vLLM could not compute ends with ``error``.

    Args:
        raw: What vLLM gave, a delta.
        request: What it answers.
        submitted_s: On the first output: monotonic time at which the request was submitted.
    """
    completion = raw.outputs[0]
    reason = None if completion.finish_reason is None else _FINISH_REASONS.get(completion.finish_reason)
    if completion.finish_reason is not None and reason is None:
        failed = UnavailableError("the engine could not finish the request; try again")
        return EngineOutput(finish_reason=FinishReason.ERROR, error=failed)
    num_tokens = len(completion.token_ids) - (reason is FinishReason.STOP and bool(completion.token_ids))
    logprobs, num_logprobs = completion.logprobs, request.sampling.num_logprobs
    return EngineOutput(
        tuple(completion.token_ids[:num_tokens]),
        () if num_logprobs is None or not logprobs else _logprobs(logprobs[:num_tokens], num_logprobs),
        _prompt_logprobs(raw, request) if raw.prompt_logprobs else (),
        reason,
        queue_s=None if submitted_s is None else _queue_s(raw, submitted_s),
    )


def error(raised: Exception) -> MedleyError:
    """Return what an exception of vLLM means to the caller; its message holds nothing of the server's inside."""
    cause = raised.__cause__ if isinstance(raised, EngineGenerateError) and raised.__cause__ else raised
    match cause:
        case MedleyError():
            return cause
        case VLLMClientError():
            param = getattr(cause, "parameter", None)
            # str() of it would add the value, which may be a whole schema.
            return InvalidArgumentError(str(cause.args[0]) if cause.args else str(cause), param=_PARAMS.get(param, param))
        case GracefulHTTPError():
            return ResourceExhaustedError(cause.message)
        case EngineDeadError() | RetryableRequestError():
            return UnavailableError("the engine died; it is being restarted")
        case _:
            return InternalError("the engine failed on this request")


def _structured_outputs(grammar: Grammar | None) -> StructuredOutputsParams | None:
    match grammar:
        case None:
            return None
        case Grammar(kind="json_object"):
            return StructuredOutputsParams(json_object=True)
        case Grammar(kind="choice", rule=rule):
            return StructuredOutputsParams(choice=_choices(rule))
        case Grammar(kind=kind, rule=rule):
            return StructuredOutputsParams(**{kind: rule})


def _choices(rule: str) -> list[str]:
    try:
        choices = json.loads(rule)
    except ValueError:
        choices = None
    if not isinstance(choices, list) or not choices or not all(isinstance(text, str) and text for text in choices):
        raise InvalidArgumentError("choice must be a list of texts, none of them empty", param="grammar")
    return choices


def _logprobs(positions: list[dict[int, Logprob]], num_logprobs: int) -> tuple[TokenLogprob, ...]:
    return tuple(_token_logprob(position, num_logprobs) for position in positions)


def _prompt_logprobs(raw: RequestOutput, request: EngineRequest) -> tuple[TokenLogprob | None, ...]:
    num_virtual_tokens = request.soft_prompt.num_virtual_tokens if request.soft_prompt else 0
    num_logprobs = request.sampling.num_prompt_logprobs or 0
    return tuple(
        None if position is None else _token_logprob(position, num_logprobs)
        for position in raw.prompt_logprobs[num_virtual_tokens:]
    )


def _token_logprob(position: dict[int, Logprob], num_logprobs: int) -> TokenLogprob:
    # The first is the token itself, then the likeliest ones, best first; the token has its rank's place among them.
    entries = iter(position.items())
    token_id, chosen = next(entries)
    top = [(each.rank, other_id, each.logprob) for other_id, each in entries]
    if chosen.rank <= num_logprobs:
        top.insert(chosen.rank - 1, (chosen.rank, token_id, chosen.logprob))
    return TokenLogprob(
        token_id,
        chosen.logprob,
        top=tuple(TokenLogprob(other_id, logprob) for _, other_id, logprob in top[:num_logprobs]),
    )


def _queue_s(raw: RequestOutput, submitted_s: float) -> float | None:
    # Both clocks are the machine's monotonic one. Without statistics vLLM does not say when it began.
    return None if raw.metrics is None else max(raw.metrics.scheduled_ts - submitted_s, 0.0)
