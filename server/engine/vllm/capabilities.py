"""What the vLLM engine can do, known without vLLM: for the documentation, and for refusals before anything is loaded.

``tests/vllm`` holds each of these against the running engine.
"""

from adapters.manifest import AdapterKind
from server.engine.base import Feature

NAME = "vllm"

# vLLM 0.32 computes LoRA itself and takes a soft prompt as prompt embeddings; it has no place for the other families.
KINDS = frozenset({AdapterKind.LORA, AdapterKind.PROMPT})

# All but no_repeat_ngram_size, which vLLM has no counterpart of, and priority: its queue is first come, first served.
FEATURES = frozenset(
    {
        Feature.REPETITION_PENALTY,
        Feature.PRESENCE_AND_FREQUENCY_PENALTY,
        Feature.MIN_NEW_TOKENS,
        Feature.IGNORE_EOS,
        Feature.MIN_P,
        Feature.LOGIT_BIAS,
        Feature.STOP_TOKEN_IDS,
        Feature.GRAMMAR,
        Feature.PROMPT_LOGPROBS,
    }
)
