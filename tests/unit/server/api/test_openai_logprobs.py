"""Log-probabilities on the wire: what shares a text, what is not finite, what stands before."""

import json
import math

from server.api.http.wire.openai_logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from server.core.outputs import EchoedPrompt, TokenLogprob

UNLIKELY = TokenLogprob(7, -3.0, "c", top=(TokenLogprob(5, -0.5, "a"), TokenLogprob(6, -1.0, "b")))


def test_token_itself_is_among_its_alternatives_though_it_is_not_of_the_best() -> None:
    (top,) = completion_logprobs([UNLIKELY])["top_logprobs"]
    assert top == {"a": -0.5, "b": -1.0, "c": -3.0}


def test_alternatives_that_share_a_text_count_as_the_likeliest() -> None:
    broken = "\N{REPLACEMENT CHARACTER}"
    token = TokenLogprob(7, -3.0, broken, top=(TokenLogprob(5, -0.5, broken), TokenLogprob(6, -1.0, broken)))
    assert completion_logprobs([token])["top_logprobs"] == [{broken: -0.5}]


def test_impossible_token_has_a_number_that_json_knows() -> None:
    token = TokenLogprob(7, -math.inf, "c", top=(TokenLogprob(5, -math.inf, "a"),))
    for wire in (completion_logprobs([token]), chat_logprobs([token])):
        assert "-9999.0" in json.dumps(wire, allow_nan=False)


def test_offsets_go_on_behind_the_prompt_and_what_was_sent_before() -> None:
    prompt = EchoedPrompt("<s>ab", (0, 5), ("<s>", "ab"), (None, TokenLogprob(5, -1.0, "ab")))
    wire = completion_logprobs([TokenLogprob(6, -2.0, "c")], offset=10, prompt=prompt)
    assert wire["tokens"] == ["<s>", "ab", "c"]
    assert wire["text_offset"] == [10, 13, 15]
    assert wire["token_logprobs"] == [None, -1.0, -2.0]
    assert wire["top_logprobs"][0] is None


def test_prompts_tokens_have_a_rank_where_they_are_among_the_best() -> None:
    likely = TokenLogprob(5, -0.5, "a", top=(TokenLogprob(5, -0.5, "a"),))
    wire = prompt_logprobs(EchoedPrompt("", (0, 7, 5), ("", "c", "a"), (None, UNLIKELY, likely)))
    assert wire == [
        None,
        {
            "7": {"logprob": -3.0, "rank": None, "decoded_token": "c"},
            "5": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
            "6": {"logprob": -1.0, "rank": 2, "decoded_token": "b"},
        },
        {"5": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
    ]
