"""OpenAI's list of models; ``root``, ``parent`` and ``max_model_len`` as vLLM adds them.

Source:
    https://platform.openai.com/docs/api-reference/models/object.
"""

from typing import Literal

from typing_extensions import TypedDict


class ModelCard(TypedDict):
    """One entry of the list: the base or an adapter.

    ``root`` is the base in either case, ``parent`` only an adapter's; ``max_model_len`` counts tokens.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(TypedDict):
    """What can be written into ``model``."""

    object: Literal["list"]
    data: list[ModelCard]
