"""Changes of adapters on the HTTP wire: what comes in, in paths, queries, headers and bodies.

What a name, an alias or a tag may be is decided further down, with one wording for every front end; the patterns here
only tell it to readers of the schema.
"""

from typing import Annotated

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from adapters.manifest import NAME_PATTERN
from adapters.registry import DEFAULT_ALIAS
from server.api.http.wire.fields import WireModel
from server.service.adapters import MAX_NUM_AUDIT

MAX_TAGS_BYTES = 4096
_NAME_SCHEMA: JsonDict = {"pattern": rf"^(?!.*\.\.){NAME_PATTERN.pattern}$", "minLength": 1, "maxLength": 63}
_KEY_SCHEMA: JsonDict = {"pattern": "^[ -~]*$", "maxLength": 128}
_MAX_VERSION = 999_999_999
_MAX_NUM_TAGS = 32
_KEY_RULE = "The same key with the same change again within 24 hours gives the first answer and changes nothing."

NamePath = Annotated[str, Path(description="Name of the adapter.", json_schema_extra=_NAME_SCHEMA)]
AliasPath = Annotated[str, Path(description="Name of the alias.", json_schema_extra=_NAME_SCHEMA)]
VersionPath = Annotated[int, Path(description="Number of the version.", ge=1, le=_MAX_VERSION)]
AliasQuery = Annotated[
    str | None, Query(description="Alias to point at the version once it is ready.", json_schema_extra=_NAME_SCHEMA)
]
TagsQuery = Annotated[str, Query(description="Tags of the version, separated by commas.", max_length=MAX_TAGS_BYTES)]
TagQuery = Annotated[
    str, Query(description="Only adapters with a live version of this tag.", json_schema_extra={"maxLength": 63})
]
ForceQuery = Annotated[
    bool, Query(description="Drop the aliases that point at it, and let the requests that run on it end first.")
]
LimitQuery = Annotated[
    int, Query(description="Most records to return.", json_schema_extra={"minimum": 1, "maximum": MAX_NUM_AUDIT})
]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", description=_KEY_RULE, json_schema_extra=_KEY_SCHEMA)]

_Name = Annotated[str, Field(json_schema_extra=_NAME_SCHEMA)]
_LoraName = Annotated[str, Field(max_length=256)]
_Tags = Annotated[list[_Name], Field(json_schema_extra={"maxItems": _MAX_NUM_TAGS})]


class SourceBody(WireModel):
    """Where the server is to fetch a version from."""

    source: str = Field(
        description='"hf://owner/repo[@revision][/folder]", "s3://bucket/folder" or "file:///folder"; '
        "only what its operator allows."
    )
    alias: _Name | None = None
    tags: _Tags = Field([])


class LabelBody(WireModel):
    """What to change about a version; what is left out stays."""

    tags: _Tags | None = None
    description: str | None = None


class AliasBody(WireModel):
    """Where an alias is to point."""

    version: int = Field(ge=1, le=_MAX_VERSION)


class RollbackBody(WireModel):
    """Which alias to point back."""

    alias: _Name = DEFAULT_ALIAS


class LoadBody(BaseModel):
    """vLLM's body; fields that vLLM may know beside these have no bearing here.

    Source:
        https://docs.vllm.ai/en/stable/features/lora/#dynamically-serving-lora-adapters
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: _LoraName
    lora_path: str = Field(description="A source URL, or a path on the server.")
    load_inplace: bool = Field(False, description="Take the place of an adapter of this name.")  # noqa: FBT003


class UnloadBody(BaseModel):
    """vLLM's body; fields that vLLM may know beside these have no bearing here."""

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: _LoraName
