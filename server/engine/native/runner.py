"""One batch in, one token per row out: builds the tensors of a step, runs the model, samples.

A step is: copy rows into gaps, do the encoder's share, then take every row one decoder step. Per-row tensors are
made once per composition of the batch and reused while it stays. Knows no queue and no event loop. Step thread only.

Legend: B rows, T packed encoder tokens, P virtual tokens, D width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.engine.native.adapter_payload import AdapterPayload, Payloads, weight_adapter, weight_digest
from server.engine.native.batch import NOT_FINITE, Batch, EncodeShare, Row, StepOutput
from server.engine.native.decoder_attention import DecoderStep
from server.engine.native.families.seq2seq import Seq2SeqModel
from server.engine.native.layers.attention import runs_of
from server.engine.native.layers.lora_choice import grouped_lora
from server.engine.native.layers.prefix import Prefix
from server.engine.native.layers.soft_prompt import embed_rows
from server.engine.native.layers.weight_adapter import AdapterDelta, AdapterStack, WeightAdapter, segment_delta
from server.engine.native.prefill import Prefill
from server.engine.native.sampler import sample
from server.engine.native.sampling_plan import SamplingPlan, plan_sampling

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Composition:
    """The tensors that depend on which rows are in the batch, and on nothing that changes step by step."""

    number: int
    row_B: Tensor
    length_B: Tensor
    num_encoder: int
    cross_mask_NL1: Tensor | None
    delta: AdapterDelta | None
    prefix_B: Tensor | None
    sampling: SamplingPlan


class Runner:
    """Executes batches on one model.

    Args:
        model: The model.
        max_num_seqs: Most rows.
        max_model_len: Most encoder positions of a row.
        max_new_tokens: Most generated tokens of a row.
        max_virtual_tokens: Longest prefix.
        payloads: Gives the weights of an adapter that a running row holds.
    """

    def __init__(
        self,
        model: Seq2SeqModel,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_new_tokens: int,
        max_virtual_tokens: int,
        payloads: Payloads,
    ) -> None:
        self._model = model
        self._payloads = payloads
        self._device = model.embedding_VD.device
        self._cache = model.make_cache(
            num_rows=max_num_seqs,
            max_encoder_len=max_model_len,
            max_decoder_len=max_virtual_tokens + max_new_tokens,
        )
        self._prefill = Prefill(model, self._cache, payloads)
        self._grouped = grouped_lora(model.embedding_VD, model.config.widths)
        start = model.config.decoder_start_token_id
        self._history = torch.full((max_num_seqs, max_new_tokens + 1), start, device=self._device)
        self._position = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._composition: _Composition | None = None
        self._stack: tuple[frozenset[str], AdapterStack] | None = None

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepOutput:
        """Run one step of a batch that is not empty."""
        for source, target in batch.moves:
            self._move(source, target, batch.rows[target])
        unplaced = [row for share in batch.shares if not self._encode(share) for row in share.rows]
        if batch.num_new:
            joined = slice(len(batch.rows) - batch.num_new, len(batch.rows))
            self._history[joined] = self._model.config.decoder_start_token_id
            self._position[joined] = 0
        composition = self._compose(batch)
        num_rows = len(batch.rows)
        position_B = self._position[:num_rows]
        prefix_B = composition.prefix_B
        step = DecoderStep(
            token_B=self._history[composition.row_B, position_B],
            position_B=position_B if prefix_B is None else position_B + prefix_B,
            num_positions=1 + max(row.num_decoder_tokens for row in batch.rows),
            length_B=composition.length_B,
            num_encoder=composition.num_encoder,
            cross_mask_NL1=composition.cross_mask_NL1,
        )
        logits_BV = self._model.decode(step, self._cache, composition.delta)
        history_BT = self._history[:num_rows, : 1 + max(len(row.token_ids) for row in batch.rows)]
        token_B, output = sample(logits_BV, batch.rows, composition.sampling, history_BT, position_B + 1)
        self._history[composition.row_B, position_B + 1] = token_B.clamp(min=0)
        position_B += 1
        for index, token_id in enumerate(output.token_ids):
            if token_id == NOT_FINITE:
                self._cache.clear(index)
        return replace(output, unplaced=tuple(unplaced)) if unplaced else output

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget everything, after a step that broke in the middle."""
        self._cache.clear_all()
        self._prefill.reset()
        self._composition = None
        self._stack = None

    @torch.inference_mode()
    def probe(self, payload: AdapterPayload) -> bool:
        """Run an adapter on a short input, beside the batch; return whether its logits are finite."""
        prompt_PD = payload if isinstance(payload, Tensor) else None
        token_ids = tuple(self._model.config.eos_token_ids[:1]) * 4
        x_TD = embed_rows(self._model.embedding_VD, [(prompt_PD, token_ids)])
        kv_T = self._model.encode(x_TD, runs_of([len(x_TD)]), _whole(payload, len(x_TD)))
        num_prefix = payload.keys.shape[1] if isinstance(payload, Prefix) else 0
        probe_cache = self._model.make_cache(num_rows=1, max_encoder_len=len(x_TD), max_decoder_len=num_prefix + 1)
        probe_cache.write_cross(0, kv_T)
        if isinstance(payload, Prefix):
            probe_cache.write_prefix(0, payload)
        start = torch.full((1,), self._model.config.decoder_start_token_id, device=self._device)
        position = torch.full_like(start, num_prefix)
        length = torch.full_like(start, len(x_TD))
        step = DecoderStep(start, position, num_prefix + 1, length, len(x_TD), None)
        logits_BV = self._model.decode(step, probe_cache, _whole(payload, 1))
        return bool(logits_BV.isfinite().all())

    def _encode(self, share: EncodeShare) -> bool:
        """Do a share of the encoder's work; return whether there was memory for it."""
        try:
            self._prefill.encode(share)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _log.warning("no memory for a share of %d rows in the encoder; they are refused", len(share.rows))
            self._prefill.reset()
            return False
        return True

    def _move(self, source: int, target: int, row: Row) -> None:
        self._cache.move(source, target, num_encoder=row.num_encoder_tokens, num_decoder=row.num_decoder_tokens)
        self._history[target] = self._history[source]
        self._position[target] = self._position[source]

    def _compose(self, batch: Batch) -> _Composition:
        """Return the tensors of this composition, the kept ones if it is the last step's."""
        if self._composition is None or self._composition.number != batch.composition:
            lengths = [row.num_encoder_tokens for row in batch.rows]
            length_B = torch.tensor(lengths, device=self._device)
            prefixes = [row.num_prefix_tokens for row in batch.rows]
            self._composition = _Composition(
                number=batch.composition,
                row_B=torch.arange(len(batch.rows), device=self._device),
                length_B=length_B,
                num_encoder=max(lengths),
                cross_mask_NL1=self._cross_mask(lengths, length_B),
                delta=self._row_deltas(batch.rows),
                prefix_B=torch.tensor(prefixes, device=self._device) if any(prefixes) else None,
                sampling=plan_sampling(batch.rows, self._device),
            )
        return self._composition

    def _cross_mask(self, lengths: Sequence[int], length_B: Tensor) -> Tensor | None:
        if self._cache.has_kernels or min(lengths) == max(lengths):
            return None
        return self._cache.cross_mask(length_B, max(lengths))

    def _row_deltas(self, rows: Sequence[Row]) -> AdapterDelta | None:
        """Return the deltas of one token per row, in the batch's order."""
        digests = [weight_digest(row) for row in rows]
        adapters = {
            digest: adapter
            for row, digest in zip(rows, digests, strict=True)
            if digest and (adapter := weight_adapter(row, self._payloads))
        }
        if len(adapters) == 1 and None not in digests:
            return segment_delta([(0, len(rows), adapter) for adapter in adapters.values()], self._grouped)
        if not adapters:
            return None
        present = frozenset(adapters)
        if self._stack is None or self._stack[0] != present:
            self._stack = (present, AdapterStack(adapters, self._model.norms, self._grouped))
        return self._stack[1].delta(digests, device=self._device)


def _whole(payload: AdapterPayload, num_rows: int) -> AdapterDelta | None:
    return segment_delta([(0, num_rows, payload)]) if isinstance(payload, WeightAdapter) else None


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError, known by its words alone.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
