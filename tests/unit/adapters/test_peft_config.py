"""The config: what is taken, what is refused, and patterns that cannot run for ever."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterError, AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from adapters.peft_families import parse_config
from adapters.peft_families.lora import Lora
from adapters.peft_families.soft_prompt import SoftPrompt
from tests.fixtures.adapters import Q, lora_config, prompt_config


def lora(**fields: object) -> Lora:
    config = parse_config(lora_config(**fields))
    assert isinstance(config, Lora)
    return config


def test_parse_config_of_lora_is_read() -> None:
    config = lora(rank=4, lora_alpha=6)
    assert (config.rank, config.lora_alpha, config.use_rslora, config.base_model) == (4, 6.0, False, "tiny-t5")
    assert (config.rank_of(Q), config.scaling_of(Q, 4)) == (4, 1.5)


def test_parse_config_of_prompt_is_read() -> None:
    assert parse_config(prompt_config(7)) == SoftPrompt("PROMPT_TUNING", "SEQ_2_SEQ_LM", 7, "tiny-t5")


def test_scaling_of_rslora_is_alpha_over_root_of_rank() -> None:
    assert lora(lora_alpha=6, use_rslora=True).scaling_of(Q, 9) == 2.0


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"q": 1}, 1),
        ({"SelfAttention.q": 1}, 1),
        ({Q: 1}, 1),
        ({"k": 1, "q": 2, Q: 3}, 2),
        ({"elfAttention.q": 1}, 4),
        ({"encoder": 1}, 4),
        ({"^q": 1}, 4),
        ({"^encoder.*": 1}, 1),
        ({r"block\.\d+\..*q": 1}, 1),
        ({"block.[1-9].*": 1, "block.[0-9].*": 2}, 2),
        ({"(?:q|v)": 1}, 1),
        ({"k|q": 1}, 1),
        ({"(q)$": 1}, 1),
        ({}, 4),
    ],
)
def test_rank_of_takes_the_first_pattern_that_matches_as_peft_does(patterns: dict[str, int], expected: int) -> None:
    assert lora(rank_pattern=patterns).rank_of(Q) == expected
    # PEFT's own rule, spelt out.
    first = next((rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", Q)), 4)
    assert first == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*b",
        "(a|a)*b",
        "(a|aa)+$",
        "((a))",
        "(a)(b)",
        ".*.*.*x",
        "a{1,99}",
        r"(a)\1",
        "(?=a)",
        "(?P<x>a)",
        "[^a]",
        "a b",
        "a\n",
        "é",
        "a" * 300,
        "|" * 20,
    ],
)
def test_parse_config_with_a_pattern_that_could_run_for_ever_is_refused(pattern: str) -> None:
    for key in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(UnsupportedAdapterError, match="pattern"):
            lora(**{key: {pattern: 2}})


@pytest.mark.parametrize("pattern", ["(", "a)", "[z-a]", "*a", "+", "a**"])
def test_parse_config_with_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidAdapterError, match="pattern"):
        lora(rank_pattern={pattern: 2})


def test_parse_config_with_too_many_patterns_is_too_large() -> None:
    with pytest.raises(AdapterTooLargeError):
        lora(rank_pattern={f"layer.{number}": 2 for number in range(1025)})
    with pytest.raises(AdapterTooLargeError):
        lora(alpha_pattern={f"layer.{number}.*": 2 for number in range(33)})
    assert len(lora(rank_pattern={f"layer.{number}": 2 for number in range(1024)}).rank_pattern) == 1024


@pytest.mark.parametrize("pattern", [".*.*x", "[a-z]+[a-z]+x", "(.*|.*|a|b|c|d|e|f)x", r"\w*\w*!"[:-1] + "x"])
def test_rank_of_with_the_worst_patterns_taken_stays_quick(pattern: str) -> None:
    config = lora(rank_pattern={f"{pattern}{number}": 2 for number in range(32)})
    path = ".".join(["aaaaaaaaaa"] * 12)
    start_s = time.perf_counter()
    config.rank_of(path)
    assert time.perf_counter() - start_s < 0.5


@settings(max_examples=200, deadline=1000)
@given(pattern=st.text(alphabet=r"ab.*+?|()[]^$\dw{}-1", max_size=24))
def test_parse_config_of_any_pattern_is_quick_or_refused(pattern: str) -> None:
    try:
        config = lora(rank_pattern={pattern: 2})
    except AdapterError:
        return
    assert config.rank_of("a" * 60 + ".b.a" * 5) in (2, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0},
        {"r": -1},
        {"r": 4.0},
        {"r": True},
        {"r": None},
        {"r": 2**40},
        {"lora_alpha": None},
        {"lora_alpha": "8"},
        {"lora_alpha": 10**400},
        {"lora_alpha": float("inf")},
        {"rank_pattern": ["q"]},
        {"rank_pattern": {"q": 0}},
        {"rank_pattern": {"q": "4"}},
        {"alpha_pattern": {"q": None}},
        {"use_rslora": "yes"},
        {"base_model_name_or_path": 1},
        {"peft_type": None},
        {"peft_type": ["LORA"]},
    ],
)
def test_parse_config_with_a_field_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidAdapterError) as caught:
        parse_config(lora_config() | fields)
    assert caught.type is InvalidAdapterError


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"trainable_token_indices": [1]}, "trainable_token"),
        ({"a_field_of_the_future": 1}, "future"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"peft_type": "LOKR"}, "'LOKR'.*save_as_lora"),
        ({"peft_type": "XLORA"}, "'XLORA'.*one by one"),
        ({"peft_type": "OFT"}, "'OFT'.*LORA, ADALORA"),
        ({"peft_type": "ADAPTION_PROMPT"}, "ADAPTION_PROMPT"),
        ({"peft_type": "LORA\x1b[2J" + "x" * 999}, "type"),
    ],
)
def test_parse_config_that_switches_on_more_is_refused_by_name(fields: dict[str, object], match: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=match) as caught:
        parse_config(lora_config() | fields)
    assert caught.value.message.isprintable()


def test_parse_config_with_unknown_fields_that_are_off_is_taken() -> None:
    fields = {"use_dora": False, "future": None, "other": {}, "more": [], "name": ""}
    assert parse_config(lora_config() | fields) == lora()
