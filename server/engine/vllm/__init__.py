"""vLLM behind Medley's engine face: decoder-only bases with LoRA and soft prompts, mixed in one batch.

``capabilities``, ``config`` and ``lora_files`` can be imported without vLLM; what knows vLLM's types is in ``mapping``.
"""
