"""vLLM's ``AsyncLLM`` as a :class:`~server.engine.vllm.core.Core`: its input processor and its client of the engine
process, with our own reading of that process's outputs.

``AsyncLLM`` would turn each output into a text and an object of its own and wake a task per request and step; texts are
made elsewhere here, and so the outputs go straight from the process's messages to their requests. It does so only once
its own output handler is started, which happens in its ``generate`` and ``add_request``: neither is called here.

Source:
    vLLM 0.32.0: ``vllm/v1/engine/async_llm.py``, ``vllm/v1/engine/core_client.py``.
"""
