"""The encoder's share of a step: embeds the rows that joined, encodes them, fills their cross-attention cache.

Rows are packed end to end and sorted by adapter, so nothing is padded and each adapter is applied to contiguous tokens.
Knows no queue, no decoding and no sampling. Step thread only.

Legend: T packed encoder tokens, L tokens of a row, P virtual tokens, D width.
"""

from collections.abc import Sequence
from itertools import groupby

from server.engine.native.adapter_payload import Payloads, prompt, weight_adapter, weight_digest
from server.engine.native.batch import Row
from server.engine.native.families.seq2seq import Seq2SeqModel
from server.engine.native.kv_cache import KVCache
from server.engine.native.layers.attention import runs_of
from server.engine.native.layers.lora_choice import grouped_lora
from server.engine.native.layers.prefix import Prefix
from server.engine.native.layers.soft_prompt import embed_rows
from server.engine.native.layers.weight_adapter import AdapterDelta, WeightAdapter, segment_delta

# Encoder tokens per pass: on CPU few enough that activations stay in the cache, on GPU enough to fill it.
_CPU_TOKENS_AT_ONCE = 1024
_GPU_TOKENS_AT_ONCE = 16384


class Prefill:
    """Encodes rows of one model into its cache.

    Args:
        model: The model.
        cache: Where cross keys and values go.
        payloads: Gives the weights of an adapter that a running row holds.
    """

    def __init__(self, model: Seq2SeqModel, cache: KVCache, payloads: Payloads) -> None:
        self._model, self._cache, self._payloads = model, cache, payloads
        self._grouped = grouped_lora(device=model.embedding_VD.device, dtype=model.embedding_VD.dtype)
        is_cpu = model.embedding_VD.device.type == "cpu"
        self._max_tokens_at_once = _CPU_TOKENS_AT_ONCE if is_cpu else _GPU_TOKENS_AT_ONCE

    def encode(self, rows: Sequence[Row]) -> None:
        """Encode the rows that joined, sorted by adapter, in parts small enough to stay in the processor's cache."""
        rows = sorted(rows, key=lambda row: (weight_digest(row) or "", row.num_encoder_tokens))
        part: list[Row] = []
        num_tokens = 0
        for row in rows:
            if part and num_tokens + row.num_encoder_tokens > self._max_tokens_at_once:
                self._encode_part(part)
                part, num_tokens = [], 0
            part.append(row)
            num_tokens += row.num_encoder_tokens
        self._encode_part(part)

    def _encode_part(self, rows: Sequence[Row]) -> None:
        """Encode rows packed end to end, each adapter's tokens contiguous."""
        lengths = [row.num_encoder_tokens for row in rows]
        prompts = [prompt(row, self._payloads) for row in rows]
        inputs = [
            (None if isinstance(before, Prefix) else before, row.request.prompt_token_ids)
            for before, row in zip(prompts, rows, strict=True)
        ]
        x_TD = embed_rows(self._model.embedding_VD, inputs)
        kv_T = self._model.encode(x_TD, runs_of(lengths), self._segments(rows, lengths))
        for row, before, kv_L in zip(rows, prompts, kv_T.split(lengths), strict=True):
            self._cache.write_cross(row.index, kv_L)
            if isinstance(before, Prefix):
                self._cache.write_prefix(row.index, before)

    def _segments(self, rows: Sequence[Row], lengths: Sequence[int]) -> AdapterDelta | None:
        """Return the deltas of rows sorted by adapter, each of so many tokens."""
        segments: list[tuple[int, int, WeightAdapter]] = []
        start = 0
        for _, group in groupby(zip(rows, lengths, strict=True), key=lambda item: weight_digest(item[0])):
            members = list(group)
            stop = start + sum(length for _, length in members)
            adapter = weight_adapter(members[0][0], self._payloads)
            if adapter is not None:
                segments.append((start, stop, adapter))
            start = stop
        return segment_delta(segments, self._grouped)
