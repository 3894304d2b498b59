"""What an engine cannot do is refused by name; what fits is settled."""

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import UnsupportedAdapterError
from adapters.manifest import AdapterKind
from server.core.errors import InvalidArgumentError, PermissionDeniedError
from server.core.principal import Principal, Scope
from server.core.sampling import Grammar, SamplingParams
from server.engine.base import Feature, ResolvedAdapter
from server.engine.fake import FakeEngine, FakeEngineConfig
from server.service.capabilities import check_adapter, check_priority, check_sampling, fitted

WITH_ENCODER = FakeEngine().info
ALONE = FakeEngine(FakeEngineConfig(is_encoder_decoder=False, max_model_len=100, max_new_tokens=99)).info
NEEDS: list[tuple[Feature, str, dict[str, object]]] = [
    (Feature.REPETITION_PENALTY, "repetition_penalty", {"repetition_penalty": 1.2}),
    (Feature.NO_REPEAT_NGRAM, "no_repeat_ngram_size", {"no_repeat_ngram_size": 3}),
    (Feature.PRESENCE_AND_FREQUENCY_PENALTY, "presence_penalty", {"presence_penalty": -0.5}),
    (Feature.PRESENCE_AND_FREQUENCY_PENALTY, "frequency_penalty", {"frequency_penalty": 0.5}),
    (Feature.MIN_NEW_TOKENS, "min_new_tokens", {"min_new_tokens": 1}),
    (Feature.IGNORE_EOS, "ignore_eos", {"ignore_eos": True}),
    (Feature.MIN_P, "min_p", {"min_p": 0.1}),
    (Feature.LOGIT_BIAS, "logit_bias", {"logit_bias": ((5, 1.0),)}),
    (Feature.STOP_TOKEN_IDS, "stop_token_ids", {"stop_token_ids": (5,)}),
    (Feature.GRAMMAR, "grammar", {"grammar": Grammar("json_object")}),
    (Feature.PROMPT_LOGPROBS, "prompt_logprobs", {"num_prompt_logprobs": 0}),
]


def refusal(**params: object) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        check_sampling(replace(WITH_ENCODER, features=frozenset()), SamplingParams(**params))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(("feature", "param", "params"), NEEDS)
def test_parameter_is_refused_by_an_engine_without_it_and_taken_by_one_with_it(
    feature: Feature, param: str, params: dict[str, object]
) -> None:
    error = refusal(**params)
    assert (error.param, "fake engine" in error.message, param in error.message) == (param, True, True)
    check_sampling(replace(WITH_ENCODER, features=frozenset({feature})), SamplingParams(**params))  # type: ignore[arg-type]


def test_every_feature_has_a_parameter_that_needs_it() -> None:
    assert {feature for feature, _, _ in NEEDS} == set(Feature) - {Feature.PRIORITY}  # not a sampling parameter


def test_priority_is_refused_by_an_engine_without_classes_and_taken_by_one_with_them() -> None:
    anybody = Principal("anybody", frozenset({Scope.INFER}))
    with pytest.raises(InvalidArgumentError, match="has no priority") as refused:
        check_priority(replace(WITH_ENCODER, features=frozenset()), anybody, 1)
    assert refused.value.param == "priority"
    check_priority(replace(WITH_ENCODER, features=frozenset()), anybody, 0)
    check_priority(replace(WITH_ENCODER, features=frozenset({Feature.PRIORITY})), anybody, 1)


def test_priority_before_the_first_of_its_key_is_denied() -> None:
    info = replace(WITH_ENCODER, features=frozenset({Feature.PRIORITY}))
    caller = Principal("caller", frozenset({Scope.INFER}), first_priority=1)
    with pytest.raises(PermissionDeniedError, match="1 or more"):
        check_priority(info, caller, 0)
    check_priority(info, caller, 1)


def test_plain_parameters_need_no_feature() -> None:
    plain = SamplingParams(temperature=1.0, top_p=0.5, top_k=3, seed=1, stop=("x",), num_logprobs=2)
    check_sampling(replace(WITH_ENCODER, features=frozenset()), plain)


@pytest.mark.parametrize("token_id", [-1, WITH_ENCODER.base.vocab_size])
@pytest.mark.parametrize("param", ["stop_token_ids", "logit_bias"])
def test_token_outside_the_vocabulary_is_refused_by_name(param: str, token_id: int) -> None:
    value: object = (token_id,) if param == "stop_token_ids" else ((token_id, 1.0),)
    with pytest.raises(InvalidArgumentError, match="vocabulary") as caught:
        check_sampling(WITH_ENCODER, SamplingParams(**{param: value}))  # type: ignore[arg-type]
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        (AdapterKind.PREFIX, {}),
        (AdapterKind.LORA, {"rank": 65}),
        (AdapterKind.PROMPT, {"num_virtual_tokens": 129}),
    ],
)
def test_adapter_beyond_the_engine_is_unsupported(kind: AdapterKind, limits: dict[str, int]) -> None:
    info = replace(WITH_ENCODER, kinds=frozenset({AdapterKind.LORA, AdapterKind.PROMPT}))
    with pytest.raises(UnsupportedAdapterError):
        check_adapter(info, ResolvedAdapter("a" * 64, kind, Path(), **limits))  # type: ignore[arg-type]
    check_adapter(info, ResolvedAdapter("a" * 64, AdapterKind.LORA, Path(), rank=64))


@pytest.mark.parametrize(
    ("num_tokens", "num_virtual_tokens", "max_new_tokens", "expected"),
    [(10, 0, None, 90), (10, 20, None, 70), (99, 0, None, 1), (10, 0, 90, 90), (10, 0, 3, 3)],
)
def test_answer_behind_a_prompt_gets_the_room_that_is_left(
    num_tokens: int, num_virtual_tokens: int, max_new_tokens: int | None, expected: int
) -> None:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    assert fitted(ALONE, sampling, num_tokens, num_virtual_tokens).max_new_tokens == expected


def test_answer_beside_an_encoder_gets_the_engines_limit() -> None:
    assert fitted(WITH_ENCODER, SamplingParams(max_new_tokens=None), 1024, 0).max_new_tokens == 256


@pytest.mark.parametrize(
    ("num_tokens", "num_virtual_tokens", "params", "param"),
    [
        (100, 0, {"max_new_tokens": None}, "text"),
        (90, 10, {"max_new_tokens": 1}, "text"),
        (90, 0, {"max_new_tokens": 11}, "max_new_tokens"),
        (80, 15, {"max_new_tokens": 6}, "max_new_tokens"),
        (90, 0, {"max_new_tokens": None, "min_new_tokens": 11}, "min_new_tokens"),
    ],
)
def test_prompt_and_answer_over_the_context_are_refused(
    num_tokens: int, num_virtual_tokens: int, params: dict[str, int], param: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=str(num_tokens)) as caught:
        fitted(ALONE, SamplingParams(**params), num_tokens, num_virtual_tokens)  # type: ignore[arg-type]
    assert caught.value.param == param
