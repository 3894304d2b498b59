"""What an engine for encoder-decoder models can never serve, by its info alone. Any thread."""

from server.core.errors import InvalidArgumentError
from server.engine.base import EngineInfo, EngineRequest


def check_request(info: EngineInfo, request: EngineRequest) -> None:
    """Refuse a request that is beyond an engine's limits.

    Raises:
        InvalidArgumentError: If it is; ``param`` names the field.
    """
    token_ids = request.prompt_token_ids
    num_tokens = len(token_ids) + (request.soft_prompt.num_encoder_tokens if request.soft_prompt else 0)
    if not token_ids:
        raise InvalidArgumentError("the prompt is empty", param="prompt")
    if num_tokens > info.max_model_len:
        raise InvalidArgumentError(
            f"{num_tokens} prompt tokens are over the limit of {info.max_model_len}", param="prompt"
        )
    if not 0 <= min(token_ids) <= max(token_ids) < info.base.vocab_size:
        raise InvalidArgumentError("a prompt token is not in the vocabulary", param="prompt")
    if (request.sampling.max_new_tokens or 0) > info.max_new_tokens:
        raise InvalidArgumentError(f"at most {info.max_new_tokens} new tokens", param="max_new_tokens")
