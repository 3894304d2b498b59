"""The encoder's share of a step: embeds rows, takes them through its stages, fills their cross-attention cache.

Rows are packed end to end and sorted by adapter, so nothing is padded and each adapter is applied to contiguous tokens.
Knows no queue, no decoding and no sampling. Step thread only.

Legend: T packed encoder tokens, L tokens of a row, P virtual tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from server.engine.native.adapter_payload import Payloads, prompt, weight_adapter, weight_digest
from server.engine.native.batch import EncodeShare, Row
from server.engine.native.families.seq2seq import EncoderPass, Seq2SeqModel
from server.engine.native.kv_cache import KVCache
from server.engine.native.layers.attention import runs_of
from server.engine.native.layers.lora_choice import grouped_lora
from server.engine.native.layers.prefix import Prefix
from server.engine.native.layers.soft_prompt import embed_rows
from server.engine.native.layers.weight_adapter import AdapterDelta, WeightAdapter, segment_delta

# Encoder tokens per pass: on CPU few enough that activations stay in the cache, on GPU enough to fill it.
_CPU_TOKENS_AT_ONCE = 1024
_GPU_TOKENS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
class _Pass:
    """Rows on their way through the encoder, and the prefix of each."""

    rows: Sequence[Row]
    prefixes: Sequence[Prefix | None]
    state: EncoderPass


class Prefill:
    """Encodes rows of one model into its cache, as many stages at a step as the scheduler says.

    Args:
        model: The model.
        cache: Where cross keys and values go.
        payloads: Gives the weights of an adapter that a running row holds.
    """

    def __init__(self, model: Seq2SeqModel, cache: KVCache, payloads: Payloads) -> None:
        self._model, self._cache, self._payloads = model, cache, payloads
        self._grouped = grouped_lora(model.embedding_VD, model.config.widths)
        is_cpu = model.embedding_VD.device.type == "cpu"
        self._max_tokens_at_once = _CPU_TOKENS_AT_ONCE if is_cpu else _GPU_TOKENS_AT_ONCE
        self._passes: list[_Pass] = []

    def encode(self, share: EncodeShare) -> None:
        """Do a share of the encoder's work on some rows; the last share of them fills their cache."""
        if share.first_stage == 0:
            self._passes = [self._begin(rows) for rows in self._parts(share.rows)]
        for encoding in self._passes:
            kv_T = self._model.advance(encoding.state, share.stop_stage - share.first_stage)
            if kv_T is not None:
                self._fill_cache(encoding, kv_T)
        if share.stop_stage == self._model.num_encoder_stages:
            self._passes = []

    def reset(self) -> None:
        """Forget rows on their way through the encoder."""
        self._passes = []

    def _parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Return rows sorted by adapter, in parts small enough to stay in the processor's cache."""
        parts: list[list[Row]] = []
        num_tokens = 0
        for row in sorted(rows, key=lambda row: (weight_digest(row) or "", row.num_encoder_tokens)):
            if not parts or num_tokens + row.num_encoder_tokens > self._max_tokens_at_once:
                parts.append([])
                num_tokens = 0
            parts[-1].append(row)
            num_tokens += row.num_encoder_tokens
        return parts

    def _begin(self, rows: Sequence[Row]) -> _Pass:
        """Embed rows packed end to end, each adapter's tokens contiguous."""
        lengths = [row.num_encoder_tokens for row in rows]
        prompts = [prompt(row, self._payloads) for row in rows]
        inputs = [
            (None if isinstance(before, Prefix) else before, row.request.prompt_token_ids)
            for before, row in zip(prompts, rows, strict=True)
        ]
        x_TD = embed_rows(self._model.embedding_VD, inputs)
        state = self._model.begin_encoding(x_TD, runs_of(lengths), self._segments(rows, lengths))
        return _Pass(rows, [before if isinstance(before, Prefix) else None for before in prompts], state)

    def _fill_cache(self, encoding: _Pass, kv_T: Tensor) -> None:
        lengths = [row.num_encoder_tokens for row in encoding.rows]
        for row, prefix, kv_L in zip(encoding.rows, encoding.prefixes, kv_T.split(lengths), strict=True):
            self._cache.write_cross(row.index, kv_L)
            if prefix is not None:
                self._cache.write_prefix(row.index, prefix)

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
