"""What callers of the OpenAI routes may write, and the requests it becomes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.http.wire.openai_bodies import MAX_PER_CALL, CompletionBody
from server.api.http.wire.openai_chat_bodies import ChatBody
from server.core.errors import InvalidArgumentError
from server.core.request import Conversation, Echo, GenerationRequest, Message
from server.core.sampling import Grammar, SamplingParams

USER = {"role": "user", "content": "x"}


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "x", **fields})


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": [USER], **fields})


def requests(body: CompletionBody | ChatBody) -> tuple[GenerationRequest, ...]:
    return body.requests("id", (), None)


def sampling(body: CompletionBody | ChatBody) -> SamplingParams:
    return requests(body)[0].sampling


def refused(body: dict[str, Any], kind: type[CompletionBody | ChatBody] = CompletionBody) -> str | None:
    """Return the field that is blamed."""
    with pytest.raises((InvalidArgumentError, ValidationError)) as caught:
        requests(kind.model_validate({"prompt": "x"} | body if kind is CompletionBody else {"messages": [USER]} | body))
    error = caught.value
    if isinstance(error, InvalidArgumentError):
        return error.param
    return ".".join(str(part) for part in error.errors()[0]["loc"])


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("a", [("a", ())]),
            (["a", "b"], [("a", ()), ("b", ())]),
            ([5, 0], [("", (5, 0))]),
            ([[5], [6, 7]], [("", (5,)), ("", (6, 7))]),
        ],
        ids=["text", "texts", "ids", "id-lists"],
    )
    def test_prompt_comes_in_four_ways(self, prompt: object, expected: object) -> None:
        asked = requests(completion(prompt=prompt))
        assert [(request.text, request.prompt_token_ids) for request in asked] == expected
        assert not any(request.apply_template for request in asked)

    @pytest.mark.parametrize(
        "prompt", [5, True, {"text": "x"}, [], [[]], ["a", 5], [5, "a"], [[5], "a"], [5.0], ["a"] * (MAX_PER_CALL + 1)]
    )
    def test_prompt_of_another_shape_is_refused(self, prompt: object) -> None:
        assert refused({"prompt": prompt}) == "prompt"

    def test_answers_to_one_prompt_stand_together_each_with_a_seed_of_its_own(self) -> None:
        asked = requests(completion(prompt=["a", "b"], n=2, seed=7))
        assert [(request.text, request.sampling.seed) for request in asked] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]

    @pytest.mark.parametrize("body", [{"n": 0}, {"n": MAX_PER_CALL + 1}, {"n": 600, "prompt": ["a", "b"]}])
    def test_far_too_many_answers_are_refused_before_they_are_copied(self, body: dict[str, Any]) -> None:
        assert refused(body) == "n"

    def test_special_tokens_may_be_left_out(self) -> None:
        assert requests(completion())[0].add_special_tokens
        assert not requests(completion(add_special_tokens=False))[0].add_special_tokens

    def test_best_of_is_n_or_refused(self) -> None:
        assert len(requests(completion(n=3, best_of=3))) == 3
        assert refused({"best_of": 3}) == "best_of"


class TestEcho:
    def test_echo_asks_for_the_prompt_and_its_log_probabilities(self) -> None:
        (request,) = requests(completion(echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234))
        assert request.echo is Echo.BEFORE
        assert (request.sampling.num_logprobs, request.sampling.num_prompt_logprobs) == (1, 1)

    def test_echo_without_logprobs_asks_for_none(self) -> None:
        assert sampling(completion(echo=True)).num_prompt_logprobs is None

    def test_echo_of_no_new_token_asks_for_nothing_else(self) -> None:
        (request,) = requests(completion(echo=True, max_tokens=0))
        assert (request.echo, request.sampling.max_new_tokens) == (Echo.ONLY, 1)

    def test_no_new_token_without_echo_is_refused(self) -> None:
        assert refused({"max_tokens": 0}) == "max_new_tokens"

    def test_prompt_logprobs_are_asked_for_by_themselves(self) -> None:
        (request,) = requests(completion(prompt_logprobs=2))
        assert (request.echo, request.sampling.num_prompt_logprobs) == (Echo.NO, 2)

    def test_prompt_logprobs_in_a_stream_are_refused(self) -> None:
        assert refused({"prompt_logprobs": 0, "stream": True}) == "prompt_logprobs"


class TestSampling:
    def test_every_option_gives_its_parameter(self) -> None:
        options = {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "seed": 2**40,
            "stop": ["x", "y"],
            "stop_token_ids": [3, 4],
            "ignore_eos": True,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "no_repeat_ngram_size": 3,
            "logit_bias": {"17": -100, "0": 1.5},
        }
        expected = SamplingParams(
            max_new_tokens=20,
            min_new_tokens=2,
            **options | {"stop": ("x", "y"), "stop_token_ids": (3, 4), "logit_bias": ((17, -100), (0, 1.5))},  # type: ignore[arg-type]
        )
        for body in (completion, chat):
            assert sampling(body(max_tokens=20, min_tokens=2, **options)) == expected

    def test_no_option_gives_the_defaults(self) -> None:
        assert sampling(completion()) == SamplingParams()
        assert sampling(chat()) == SamplingParams(max_new_tokens=None)

    def test_null_means_left_out(self) -> None:
        fields = ("model", "temperature", "max_tokens", "seed", "stop", "logprobs", "stream_options", "response_format")
        assert requests(completion(**dict.fromkeys(fields))) == requests(completion())

    @pytest.mark.parametrize(("field", "value", "means"), [("top_k", -1, 0), ("seed", -1, None), ("stop", "x", ("x",))])
    def test_other_ways_to_say_it_are_understood(self, field: str, value: object, means: object) -> None:
        assert getattr(sampling(completion(**{field: value})), field) == means

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("top_k", -2),
            ("seed", -2),
            ("min_p", 1.5),
            ("presence_penalty", 3),
            ("frequency_penalty", -3),
            ("logprobs", 21),
            ("prompt_logprobs", -1),
            ("logit_bias", {"5": 101}),
            ("ignore_eos", 1),
            ("temperature", "1"),
            ("stop_token_ids", 5),
        ],
    )
    def test_value_out_of_range_is_refused_by_name(self, field: str, value: object) -> None:
        assert refused({field: value}) == field

    @pytest.mark.parametrize("token", ["", "x", "-1", "1.5", "٣", "9" * 10])
    def test_bias_of_what_is_no_token_is_refused(self, token: str) -> None:
        assert str(refused({"logit_bias": {token: 1}})).startswith("logit_bias")


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class TestGrammar:
    @pytest.mark.parametrize(
        ("fields", "kind", "rule"),
        [
            ({"response_format": {"type": "json_object"}}, "json_object", ""),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
                "json",
                SCHEMA,
            ),
            ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA),
            ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json", SCHEMA),
            ({"structured_outputs": {"choice": ["yes", "no"]}}, "choice", ["yes", "no"]),
            ({"structured_outputs": {"json_object": True}}, "json_object", ""),
        ],
    )
    def test_rule_is_read(self, fields: dict[str, Any], kind: str, rule: object) -> None:
        for body in (completion, chat):
            grammar = sampling(body(**fields)).grammar
            assert grammar is not None
            assert grammar.kind == kind
            assert (json.loads(grammar.rule) if grammar.rule else "") == rule

    def test_rules_that_are_text_stay_as_they_are(self) -> None:
        assert sampling(completion(structured_outputs={"regex": "a+"})).grammar == Grammar("regex", "a+")
        assert sampling(completion(structured_outputs={"grammar": "root ::= x"})).grammar == Grammar(
            "grammar", "root ::= x"
        )

    def test_format_of_text_is_no_rule(self) -> None:
        assert sampling(chat(response_format={"type": "text"})).grammar is None

    @pytest.mark.parametrize(
        ("fields", "blamed"),
        [
            ({"response_format": {"type": "json_schema"}}, "response_format"),
            ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format"),
            ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
            ({"structured_outputs": {}}, "structured_outputs"),
            ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
            ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
            ({"structured_outputs": {"regex": "\ud800"}}, "structured_outputs.regex"),
            ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
            ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
            ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
            ({"structured_outputs": {"json": "5"}}, "structured_outputs.json"),
            ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
            ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
            ({"guided_regex": "a"}, "guided_regex"),
        ],
    )
    def test_rule_that_is_none_is_refused(self, fields: dict[str, Any], blamed: str) -> None:
        assert str(refused(fields)).startswith(blamed)

    def test_rule_nested_too_deeply_is_refused(self) -> None:
        deep: dict[str, Any] = {}
        for _ in range(2000):
            deep = {"not": deep}
        assert refused({"structured_outputs": {"json": deep}}) == "structured_outputs.json"


class TestChat:
    def test_messages_become_a_conversation(self) -> None:
        parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
        body = chat(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": parts, "name": "Ann"}])
        assert requests(body)[0].conversation == Conversation((Message("system", "a"), Message("user", "b\nc")))

    @pytest.mark.parametrize(
        ("fields", "is_opened", "is_continued"),
        [
            ({}, True, False),
            ({"add_generation_prompt": False}, False, False),
            ({"continue_final_message": True}, False, True),
            ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
        ],
    )
    def test_answer_opens_a_turn_or_goes_on_with_one(
        self, fields: dict[str, Any], is_opened: bool, is_continued: bool
    ) -> None:
        conversation = requests(chat(**fields))[0].conversation
        assert conversation is not None
        assert (conversation.add_generation_prompt, conversation.continue_final_message) == (is_opened, is_continued)

    def test_turn_cannot_be_opened_and_gone_on_with(self) -> None:
        fields = {"continue_final_message": True, "add_generation_prompt": True}
        assert refused(fields, ChatBody) == "continue_final_message"

    def test_template_gets_further_names(self) -> None:
        conversation = requests(chat(chat_template_kwargs={"enable_thinking": False}))[0].conversation
        assert conversation is not None
        assert conversation.template_kwargs == {"enable_thinking": False}

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, None),
            ({"max_tokens": 5}, 5),
            ({"max_completion_tokens": 6}, 6),
            ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ],
    )
    def test_length_goes_by_either_name(self, fields: dict[str, int], expected: int | None) -> None:
        assert sampling(chat(**fields)).max_new_tokens == expected

    @pytest.mark.parametrize(
        ("fields", "expected"), [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)]
    )
    def test_logprobs_become_a_number(self, fields: dict[str, Any], expected: int | None) -> None:
        assert sampling(chat(**fields)).num_logprobs == expected

    def test_echo_says_the_last_message_again_if_it_is_the_assistants(self) -> None:
        said = {"role": "assistant", "content": "well"}
        assert chat(messages=[USER, said], echo=True).opening == "well"
        assert chat(messages=[USER, said]).opening == ""
        assert chat(echo=True).opening == ""

    def test_answer_of_this_server_can_be_sent_back(self) -> None:
        said = {"role": "assistant", "content": "well", "refusal": None, "tool_calls": [], "annotations": []}
        assert len(chat(messages=[USER, said, USER]).messages) == 3


class TestRoutingKey:
    @pytest.mark.parametrize("make", [completion, chat])
    def test_user_is_the_routing_key_unless_one_is_given(self, make: Callable[..., CompletionBody | ChatBody]) -> None:
        given = [{}, {"user": "anna"}, {"routing_key": "k"}, {"user": "anna", "routing_key": "k"}, {"user": None}]
        assert [requests(make(**fields))[0].routing_key for fields in given] == ["", "anna", "k", "k", ""]


class TestForeignFields:
    @pytest.mark.parametrize("field", ["safety_identifier", "metadata", "service_tier", "session_id"])
    def test_field_without_bearing_is_dropped(self, field: str) -> None:
        assert completion(**{field: "anything"}) == completion()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("suffix", ""),
            ("use_beam_search", False),
            ("length_penalty", 1.0),
            ("length_penalty", 1),
            ("skip_special_tokens", True),
            ("include_stop_str_in_output", False),
            ("bad_words", []),
        ],
    )
    def test_field_that_changes_nothing_is_taken(self, field: str, value: object) -> None:
        assert completion(**{field: value}) == completion()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("suffix", "end"),
            ("use_beam_search", True),
            ("skip_special_tokens", False),
            ("include_stop_str_in_output", True),
            ("include_stop_str_in_output", 0),
            ("prompt_embeds", "AAAA"),
            ("cache_salt", "s"),
            ("truncate_prompt_tokens", 5),
            ("messages", [USER]),
            ("unheard_of", 1),
        ],
    )
    def test_field_that_would_change_the_answer_is_refused(self, field: str, value: object) -> None:
        assert refused({field: value}) == field

    @pytest.mark.parametrize(
        ("field", "value"),
        [("tools", [{}]), ("tool_choice", "required"), ("chat_template", "x"), ("add_special_tokens", True)],
    )
    def test_field_that_would_change_a_chat_is_refused(self, field: str, value: object) -> None:
        assert refused({field: value}, ChatBody) == field
