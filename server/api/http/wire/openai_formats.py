"""What a caller of the OpenAI routes may ask the text to match, as core's one ``Grammar``.

Two ways of saying it: OpenAI's ``response_format`` and vLLM's ``structured_outputs``. Whether the engine can hold to a
rule at all, and whether the rule can be compiled, is not known here.

Source:
    https://platform.openai.com/docs/guides/structured-outputs;
    https://docs.vllm.ai/en/stable/features/structured_outputs/.
"""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from server.api.http.wire.fields import Neutral, WireModel
from server.core.errors import InvalidArgumentError
from server.core.sampling import Grammar

_Kind = Literal["json", "regex", "choice", "grammar", "json_object"]
_MAX_CHOICES = 1024


class NamedSchema(WireModel):
    """A JSON schema with OpenAI's words around it; only the schema has a bearing."""

    name: str = ""
    description: str = ""
    strict: bool = False
    schema_: dict[str, object] = Field(alias="schema")


class ResponseFormat(WireModel):
    """OpenAI's way: any text, any JSON object, or JSON that a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def grammar(self) -> Grammar | None:
        """Return the rule, if the text must match one.

        Raises:
            InvalidArgumentError: If the schema is missing, out of place or too long.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidArgumentError(
                "response_format needs json_schema with the type json_schema, and with no other",
                param="response_format",
            )
        if self.json_schema is not None:
            return _grammar("json", self.json_schema.schema_, "response_format.json_schema.schema")
        return Grammar("json_object") if self.type == "json_object" else None


def _read(schema: object) -> object:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidArgumentError(
            "structured_outputs.json is a text that is not valid JSON", param="structured_outputs.json"
        ) from None


class StructuredOutputs(WireModel):
    """vLLM's way: exactly one of five."""

    NEUTRAL: ClassVar[Neutral] = {
        "disable_additional_properties": (False,),
        "disable_any_whitespace": (False,),
        "structural_tag": (),
        "whitespace_pattern": (),
    }

    json_: Annotated[
        dict[str, object] | None, BeforeValidator(_read, json_schema_input_type=dict[str, object] | str | None)
    ] = Field(None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=_MAX_CHOICES)
    grammar_: str | None = Field(None, alias="grammar", description="A context-free grammar in EBNF.")
    json_object: Literal[True] | None = None

    def grammar(self) -> Grammar:
        """Return the rule.

        Raises:
            InvalidArgumentError: Unless exactly one rule is given, and it is in range.
        """
        rules: dict[_Kind, object] = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar_,
            "json_object": None if self.json_object is None else "",
        }
        given = [kind for kind, rule in rules.items() if rule is not None]
        if len(given) != 1:
            raise InvalidArgumentError(
                f"structured_outputs takes exactly one of {', '.join(rules)}", param="structured_outputs"
            )
        return _grammar(given[0], rules[given[0]], f"structured_outputs.{given[0]}")


def _grammar(kind: _Kind, rule: object, param: str) -> Grammar:
    try:
        text = rule if isinstance(rule, str) else json.dumps(rule, separators=(",", ":"))
        text.encode()
        return Grammar(kind, text)
    except RecursionError:
        raise InvalidArgumentError(f"{param} is nested too deeply", param=param) from None
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{param} is not valid Unicode", param=param) from None
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{param}: {error.message}", param=param) from None
