"""What an engine is asked for against what it can do: refused here, by name, before any queue.

Pure functions of an engine's info; any thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from adapters.errors import UnsupportedAdapterError
from adapters.manifest import AdapterKind
from server.core.errors import InvalidArgumentError, PermissionDeniedError
from server.core.principal import Principal
from server.core.sampling import SamplingParams
from server.engine.base import EngineInfo, Feature, ResolvedAdapter

# Feature → the field to blame and whether a request needs it.
_NEEDS: Mapping[Feature, tuple[tuple[str, Callable[[SamplingParams], bool]], ...]] = MappingProxyType(
    {
        Feature.REPETITION_PENALTY: (("repetition_penalty", lambda params: params.repetition_penalty != 1.0),),
        Feature.NO_REPEAT_NGRAM: (("no_repeat_ngram_size", lambda params: params.no_repeat_ngram_size > 0),),
        Feature.PRESENCE_AND_FREQUENCY_PENALTY: (
            ("presence_penalty", lambda params: params.presence_penalty != 0.0),
            ("frequency_penalty", lambda params: params.frequency_penalty != 0.0),
        ),
        Feature.MIN_NEW_TOKENS: (("min_new_tokens", lambda params: params.min_new_tokens > 0),),
        Feature.IGNORE_EOS: (("ignore_eos", lambda params: params.ignore_eos),),
        Feature.MIN_P: (("min_p", lambda params: params.min_p > 0.0),),
        Feature.LOGIT_BIAS: (("logit_bias", lambda params: bool(params.logit_bias)),),
        Feature.STOP_TOKEN_IDS: (("stop_token_ids", lambda params: bool(params.stop_token_ids)),),
        Feature.GRAMMAR: (("grammar", lambda params: params.grammar is not None),),
        Feature.PROMPT_LOGPROBS: (("prompt_logprobs", lambda params: params.num_prompt_logprobs is not None),),
    }
)


def check_sampling(info: EngineInfo, sampling: SamplingParams) -> None:
    """Refuse sampling parameters that an engine does not honour, or that name tokens its base has not.

    Raises:
        InvalidArgumentError: If there are any; ``param`` names the field.
    """
    for feature in _NEEDS.keys() - info.features:
        for param, is_needed in _NEEDS[feature]:
            if is_needed(sampling):
                raise InvalidArgumentError(f"the {info.name} engine has no {param}; leave it out", param=param)
    vocab_size = info.base.vocab_size
    named = {"stop_token_ids": sampling.stop_token_ids, "logit_bias": tuple(token for token, _ in sampling.logit_bias)}
    for param, token_ids in named.items():
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise InvalidArgumentError(
                f"a token of {param} is not in the vocabulary; ids are 0 to {vocab_size - 1}", param=param
            )
    if sampling.max_new_tokens is not None and sampling.max_new_tokens > info.max_new_tokens:
        raise InvalidArgumentError(
            f"max_new_tokens is {sampling.max_new_tokens}; at most {info.max_new_tokens} are generated",
            param="max_new_tokens",
        )


def check_priority(info: EngineInfo, principal: Principal, priority: int) -> None:
    """Refuse a class that an engine has not, or that is too early for its caller.

    Raises:
        InvalidArgumentError: If the engine serves all requests alike.
        PermissionDeniedError: If the caller's requests may not go before others'.
    """
    if priority and Feature.PRIORITY not in info.features:
        raise InvalidArgumentError(f"the {info.name} engine has no priority; leave it out", param="priority")
    if priority < principal.first_priority:
        raise PermissionDeniedError(
            f"this key's requests have priority {principal.first_priority} or more", param="priority"
        )


def check_kind(info: EngineInfo, kind: AdapterKind) -> None:
    """Refuse adapters of families that an engine does not serve.

    Raises:
        UnsupportedAdapterError: If this is one.
    """
    if kind not in info.kinds:
        served = ", ".join(sorted(info.kinds))
        raise UnsupportedAdapterError(f"the {info.name} engine serves no {kind} adapters; it serves {served}")


def check_adapter(info: EngineInfo, adapter: ResolvedAdapter) -> None:
    """Refuse an adapter that is beyond an engine, as one registered by a server with another engine or other limits.

    Raises:
        UnsupportedAdapterError: If it is.
    """
    check_kind(info, adapter.kind)
    if adapter.rank > info.max_lora_rank:
        raise UnsupportedAdapterError(
            f"the adapter has rank {adapter.rank}; here at most {info.max_lora_rank} is served"
        )
    if adapter.num_virtual_tokens > info.max_virtual_tokens:
        raise UnsupportedAdapterError(
            f"the adapter has {adapter.num_virtual_tokens} virtual tokens; "
            f"here at most {info.max_virtual_tokens} are served"
        )


def fitted(info: EngineInfo, sampling: SamplingParams, num_tokens: int, num_virtual_tokens: int) -> SamplingParams:
    """Return the parameters with ``max_new_tokens`` settled, for a prompt that fits.

    Args:
        info: The engine's.
        sampling: What was asked for.
        num_tokens: The prompt's tokens.
        num_virtual_tokens: Those that its adapters add to it.

    Raises:
        InvalidArgumentError: If the prompt, alone or with the answer, does not fit.
    """
    limit, num_positions = info.max_model_len, num_tokens + num_virtual_tokens
    said = f"the prompt has {num_tokens} tokens" + (
        f" and {num_virtual_tokens} virtual tokens" if num_virtual_tokens else ""
    )
    if num_positions + (not info.is_encoder_decoder) > limit:
        room = "" if info.is_encoder_decoder else " with the answer"
        raise InvalidArgumentError(f"{said}; at most {limit} fit{room}", param="text")
    num_left = info.max_new_tokens if info.is_encoder_decoder else min(info.max_new_tokens, limit - num_positions)
    if sampling.max_new_tokens is None:
        if sampling.min_new_tokens > num_left:
            raise InvalidArgumentError(f"{said}, so at most {num_left} are generated", param="min_new_tokens")
        return replace(sampling, max_new_tokens=num_left)
    if sampling.max_new_tokens > num_left:
        raise InvalidArgumentError(
            f"{said} and max_new_tokens is {sampling.max_new_tokens}; at most {limit} fit together",
            param="max_new_tokens",
        )
    return sampling
