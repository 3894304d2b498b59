"""What runs of ours inside vLLM's processes: fresh blocks of keys and values are zeroed before anyone reads them.

vLLM frees a request's blocks as they are, and masks by a weight of zero what a later owner has not written yet. Zero
times infinity or NaN is NaN: an adapter that overflows would reach requests that have nothing to do with it, through
blocks it had before them. vLLM can zero blocks, and does where stale bytes could be no numbers even in sound use; here
it does so always. That costs one more write per key and value.

vLLM calls it in each of its processes (entry point group ``vllm.general_plugins``); where vLLM is not ours, as in its
own server in the same environment, nothing is changed.

Source:
    vLLM 0.32.0: ``vllm/v1/kv_cache_interface.py`` (``KVCacheConfig.needs_kv_cache_zeroing``), ``vllm/plugins``.
"""

import os

IS_OURS = "MEDLEY_VLLM"


def zero_fresh_blocks() -> None:
    """Have vLLM zero blocks when it hands them out. Called by vLLM, any number of times."""
    if IS_OURS not in os.environ:
        return
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _config: True)
