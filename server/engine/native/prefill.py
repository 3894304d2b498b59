"""The encoder's share of a step: embeds the rows that joined, encodes them, fills their cross-attention cache.

Rows are packed end to end and sorted by adapter, so nothing is padded and each adapter is applied to contiguous tokens.
Knows no queue, no decoding and no sampling. Step thread only.

Legend: T packed encoder tokens, L tokens of a row, P virtual tokens, D width.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from torch import Tensor

from server.engine.base import ResolvedAdapter
from server.engine.native.batch import Row
from server.engine.native.families.seq2seq import Seq2SeqModel
from server.engine.native.kv_cache import KVCache
from server.engine.native.layers.attention import runs_of
from server.engine.native.layers.lora import LoraAdapter, LoraDelta, SegmentDelta
from server.engine.native.layers.soft_prompt import embed_rows

# Encoder tokens per pass: on CPU few enough that activations stay in the cache, on GPU enough to fill it.
_CPU_TOKENS_AT_ONCE = 1024
_GPU_TOKENS_AT_ONCE = 16384

AdapterPayload = LoraAdapter | Tensor
"""What a slot holds: a LoRA by site, or the (P, D) embeddings of a soft prompt."""


class Prefill:
    """Encodes rows of one model into its cache.

    Args:
        model: The model.
        cache: Where cross keys and values go.
        payload: Gives the weights of an adapter that a running row holds.
    """

    def __init__(
        self, model: Seq2SeqModel, cache: KVCache, payload: Callable[[ResolvedAdapter], AdapterPayload]
    ) -> None:
        self._model, self._cache, self._payload = model, cache, payload
        is_cpu = model.embedding_VD.device.type == "cpu"
        self._max_tokens_at_once = _CPU_TOKENS_AT_ONCE if is_cpu else _GPU_TOKENS_AT_ONCE

    def encode(self, rows: Sequence[Row]) -> None:
        """Encode the rows that joined, sorted by adapter, in parts small enough to stay in the processor's cache."""
        rows = sorted(rows, key=lambda row: (lora_digest(row) or "", row.num_encoder_tokens))
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
        x_TD = embed_rows(self._model.embedding_VD, [(self._prompt(row), row.request.prompt_token_ids) for row in rows])
        kv_T = self._model.encode(x_TD, runs_of(lengths), self._segments(rows, lengths))
        for row, kv_L in zip(rows, kv_T.split(lengths), strict=True):
            self._cache.write_cross(row.index, kv_L)

    def _prompt(self, row: Row) -> Tensor | None:
        adapter = row.request.soft_prompt
        if adapter is None:
            return None
        prompt_PD = self._payload(adapter)
        assert isinstance(prompt_PD, Tensor)
        return prompt_PD

    def _segments(self, rows: Sequence[Row], lengths: Sequence[int]) -> LoraDelta | None:
        """Return the deltas of rows sorted by adapter, each of so many tokens."""
        segments: list[tuple[int, int, LoraAdapter]] = []
        start = 0
        for _, group in groupby(zip(rows, lengths, strict=True), key=lambda item: lora_digest(item[0])):
            members = list(group)
            stop = start + sum(length for _, length in members)
            lora = row_lora(members[0][0], self._payload)
            if lora is not None:
                segments.append((start, stop, lora))
            start = stop
        return SegmentDelta(segments) if segments else None


def lora_digest(row: Row) -> str | None:
    """Return the digest of the row's weight adapter, or None."""
    return row.request.weight_adapter.digest if row.request.weight_adapter else None


def row_lora(row: Row, payload: Callable[[ResolvedAdapter], AdapterPayload]) -> LoraAdapter | None:
    """Return the weights of the row's weight adapter, or None."""
    adapter = row.request.weight_adapter
    if adapter is None:
        return None
    lora = payload(adapter)
    assert not isinstance(lora, Tensor)
    return lora
