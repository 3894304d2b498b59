"""Ours to vLLM's types and back: sampling parameters, prompts, LoRAs, outputs, errors. All of it is on the hot path.

Knows no queue, no process and no residency. Pure functions, any thread.

Shapes: P virtual tokens, L positions of a prompt, virtual ones included.

Source:
    vLLM 0.32.0: ``vllm/sampling_params.py``, ``vllm/inputs/engine.py``, ``vllm/v1/engine/__init__.py``,
    ``vllm/v1/outputs.py``, ``vllm/v1/core/sched/utils.py``, ``vllm/exceptions.py``.
"""

import json
from pathlib import Path

import vllm
from vllm.exceptions import GracefulHTTPError, RetryableRequestError, VLLMClientError
from vllm.inputs.engine import EmbedsInput, TokensInput, embeds_input, tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput
from vllm.v1.engine import FinishReason as RawFinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

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
from server.engine.vllm.core import NotFiniteError
from server.engine.vllm.soft_prompts import SoftPrompt

# What vLLM itself raises such temperatures to, with a warning in the log for each.
_LEAST_TEMPERATURE = 0.01
_FINISH_REASONS = {
    RawFinishReason.STOP: FinishReason.STOP,
    RawFinishReason.LENGTH: FinishReason.LENGTH,
    RawFinishReason.ABORT: FinishReason.ABORT,
}
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


def prompt(request: EngineRequest, soft_prompt: SoftPrompt | None) -> TokensInput | EmbedsInput:
    """Return what vLLM continues: the prompt's tokens, behind the rows of its soft prompt if it has one.

    Args:
        request: The request.
        soft_prompt: Its soft prompt's rows, or None.
    """
    token_ids = list(request.prompt_token_ids)
    if soft_prompt is None:
        return tokens_input(token_ids)
    num_virtual_tokens = soft_prompt.num_virtual_tokens
    return embeds_input(
        soft_prompt.rows(num_virtual_tokens + len(token_ids)),
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


def output(raw: EngineCoreOutput, request: EngineRequest, held_s: float | None = None) -> EngineOutput:
    """Return what one output of vLLM's engine process adds to a request.

    The token that ended the text is not in it, but for its log-probability.

    Args:
        raw: What vLLM gave.
        request: What it answers.
        held_s: On the first output: seconds from submission until vLLM was given the request.
    """
    reason = None if raw.finish_reason is None else _FINISH_REASONS.get(raw.finish_reason, FinishReason.ERROR)
    # vLLM counts these only where it is told to by its environment.
    if raw.num_nans_in_logits or reason is FinishReason.ERROR:
        return EngineOutput(finish_reason=FinishReason.ERROR, error=_failure(raw))
    num_tokens = len(raw.new_token_ids)
    if reason is FinishReason.STOP and num_tokens:
        num_tokens -= 1
    return EngineOutput(
        tuple(raw.new_token_ids[:num_tokens]),
        () if raw.new_logprobs is None else _logprobs(raw.new_logprobs, request),
        () if raw.new_prompt_logprobs_tensors is None else _prompt_logprobs(raw.new_prompt_logprobs_tensors, request),
        reason,
        queue_s=None if held_s is None else held_s + _queued_s(raw),
    )


def error(raised: Exception) -> MedleyError:
    """Return what an exception of vLLM means to the caller; its message holds nothing of the server's inside."""
    match raised:
        case MedleyError():
            return raised
        case VLLMClientError():
            # str() of it would add the value, which may be a whole schema.
            message = str(raised.args[0]) if raised.args else str(raised)
            param = str(getattr(raised, "parameter", None) or "")
            return InvalidArgumentError(message, param=_PARAMS.get(param, param) or None)
        case GracefulHTTPError():
            return ResourceExhaustedError(raised.message)
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


def _failure(raw: EngineCoreOutput) -> MedleyError:
    if raw.num_nans_in_logits:
        return NotFiniteError("the model's output for this request was not finite; its adapter may be damaged")
    return UnavailableError("the engine could not finish this request; try again")


def _logprobs(raw: LogprobsLists, request: EngineRequest) -> tuple[TokenLogprob, ...]:
    return _token_logprobs(
        raw.logprob_token_ids.tolist(),
        raw.logprobs.tolist(),
        request.sampling.num_logprobs or 0,
    )


def _prompt_logprobs(raw: LogprobsTensors, request: EngineRequest) -> tuple[TokenLogprob | None, ...]:
    # vLLM's rows begin with the second position, as nothing stands before the first.
    num_virtual_tokens = request.soft_prompt.num_virtual_tokens if request.soft_prompt else 0
    first_row = max(num_virtual_tokens - 1, 0)
    known = _token_logprobs(
        raw.logprob_token_ids[first_row:].tolist(),
        raw.logprobs[first_row:].tolist(),
        request.sampling.num_prompt_logprobs or 0,
    )
    return known if num_virtual_tokens else (None, *known)


def _token_logprobs(
    token_ids: list[list[int]], logprobs: list[list[float]], num_logprobs: int
) -> tuple[TokenLogprob, ...]:
    # A row has the token itself, then the likeliest ones, best first; more of them than asked for where a neighbour in
    # the batch asked for more.
    return tuple(
        TokenLogprob(
            row_ids[0],
            row[0],
            top=tuple(
                TokenLogprob(token_id, logprob)
                for token_id, logprob in zip(row_ids[1 : num_logprobs + 1], row[1 : num_logprobs + 1], strict=True)
            ),
        )
        for row_ids, row in zip(token_ids, logprobs, strict=True)
    )


def _queued_s(raw: EngineCoreOutput) -> float:
    # Without statistics vLLM does not say when it began.
    times_s: dict[EngineCoreEventType, float] = {event.type: event.timestamp for event in raw.events or ()}
    begin_s = times_s.get(EngineCoreEventType.QUEUED, 0.0)
    return max(times_s.get(EngineCoreEventType.SCHEDULED, begin_s) - begin_s, 0.0)
