"""Log-probabilities as OpenAI's objects have them: parallel lists for completions, a list of tokens for chats.

Source:
    https://platform.openai.com/docs/api-reference/completions/object and ``/chat/object``; the prompt's, as vLLM gives
    them: https://docs.vllm.ai/en/stable/api/vllm/sampling_params/.
"""

from collections.abc import Sequence

from typing_extensions import TypedDict

from server.core.outputs import EchoedPrompt, TokenLogprob

_LEAST = -9999.0  # OpenAI's word for minus infinity, which JSON has none for


class CompletionLogprobs(TypedDict):
    """Parallel lists, one place per token; None for a first token of the prompt that nothing stands before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(TypedDict):
    """One alternative."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopLogprob):
    """One token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """One entry per token."""

    content: list[ChatToken]
    refusal: None


class PromptLogprob(TypedDict):
    """One token that stood, or might have stood, at a place of the prompt; no rank where it is not among the best."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, for each place of the prompt."""


def completion_logprobs(
    tokens: Sequence[TokenLogprob], offset: int = 0, prompt: EchoedPrompt | None = None
) -> CompletionLogprobs:
    """Translate the log-probabilities of a text or a piece of it.

    Args:
        tokens: What was generated.
        offset: The place in the text, in characters, where it begins.
        prompt: What stands before it, if the text begins with that.
    """
    entries: list[tuple[str, TokenLogprob | None]] = []
    if prompt is not None:
        entries += zip(prompt.tokens, prompt.logprobs, strict=True)
    entries += [(token.text, token) for token in tokens]
    offsets: list[int] = []
    for text, _ in entries:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [text for text, _ in entries],
        "token_logprobs": [None if token is None else _finite(token.logprob) for _, token in entries],
        "top_logprobs": [None if token is None else _by_text(token) for _, token in entries],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Translate the log-probabilities of a message or a piece of it."""
    content: list[ChatToken] = [
        {**_top_logprob(token), "top_logprobs": [_top_logprob(top) for top in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(prompt: EchoedPrompt) -> PromptLogprobs:
    """Translate the log-probabilities of a prompt by itself."""
    return [None if token is None else _by_token_id(token) for token in prompt.logprobs]


def _by_text(token: TokenLogprob) -> dict[str, float]:
    # The token itself is in OpenAI's tables too. Tokens may share a text, as parts of characters do: the best counts.
    best: dict[str, float] = {}
    for each in (*token.top, token):
        best[each.text] = max(_finite(each.logprob), best.get(each.text, _LEAST))
    return best


def _by_token_id(token: TokenLogprob) -> dict[str, PromptLogprob]:
    ranked = {str(each.token_id): _prompt_logprob(each, rank) for rank, each in enumerate(token.top, start=1)}
    return {str(token.token_id): _prompt_logprob(token, None), **ranked}


def _prompt_logprob(token: TokenLogprob, rank: int | None) -> PromptLogprob:
    return {"logprob": _finite(token.logprob), "rank": rank, "decoded_token": token.text}


def _top_logprob(token: TokenLogprob) -> TopLogprob:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.text.encode())}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
