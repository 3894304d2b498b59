"""Fields of OpenAI's and of vLLM's own servers that we know and do not honour.

A caller who sends one with a value that changes nothing is served; with any other it is refused, by name. A field that
nobody knows is refused as well, as a likely mistake.

Source:
    https://platform.openai.com/docs/api-reference/completions/create and ``/chat/create``;
    https://docs.vllm.ai/en/stable/serving/openai_compatible_server/#extra-parameters.
"""

from server.api.http.wire.fields import Neutral

DROPPED = frozenset(
    {
        # For the books of OpenAI's own service.
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        # For routing between vLLM's servers, and for its routes that only render prompts.
        "mm_payload",
        "return_mm_kwargs",
        "return_token_offsets",
        "session_id",
        # Without effect while the fields they belong to are neutral.
        "spaces_between_special_tokens",
        "truncation_side",
    }
)
"""They never change an answer."""

NEUTRAL: Neutral = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "ec_transfer_params": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logprob_token_ids": ([],),
    "repetition_detection": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    "skip_special_tokens": (True,),
    "stream_interval": (1,),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
"""On both routes."""

COMPLETION_NEUTRAL: Neutral = {**NEUTRAL, "prompt_embeds": ([],), "suffix": ("",)}
"""On the route of completions."""

CHAT_NEUTRAL: Neutral = {
    **NEUTRAL,
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "return_prompt_text": (False,),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""On the route of chat completions."""
