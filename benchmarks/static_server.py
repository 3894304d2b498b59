"""PEFT's side of a trace: the strongest simple server around its mixed batch.

Whenever it is free it takes all requests that have arrived, in order, up to a batch; pads them; generates once, each
row with its own adapter, to the longest answer of the batch; and answers each row with the tokens it asked for when
the batch ends.
"""

import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import T5ForConditionalGeneration

from benchmarks.latency import answered
from benchmarks.trace import TraceRequest
from loadtest.records import RequestRecord
from server.engine.base import ResolvedAdapter


class StaticServer:
    """A base with all adapters loaded. One thread.

    Args:
        base: The base's folder.
        adapters: Its LoRAs, at least one.
        dtype: Dtype of base and adapters.
    """

    def __init__(self, base: Path, adapters: Sequence[ResolvedAdapter], dtype: str) -> None:
        self._adapters = adapters
        model = T5ForConditionalGeneration.from_pretrained(base, dtype=getattr(torch, dtype))
        self._model = PeftModel.from_pretrained(model, adapters[0].path, adapter_name=adapters[0].digest)
        for adapter in adapters[1:]:
            self._model.load_adapter(adapter.path, adapter_name=adapter.digest)
        # PEFT loads adapters in float32; computing in two dtypes would cost it time.
        self._model.to(getattr(torch, dtype)).eval()
        self._pad = model.config.pad_token_id

    def serve(self, trace: Sequence[TraceRequest], *, max_batch: int) -> list[RequestRecord]:
        """Serve a trace as time passes; returns after the last answer.

        Args:
            trace: Requests by arrival, at least one.
            max_batch: Most rows of a batch.
        """
        start_s = time.perf_counter()
        records: list[RequestRecord] = []
        while len(records) < len(trace):
            waiting = trace[len(records) :]
            now_s = time.perf_counter() - start_s
            if waiting[0].arrival_s > now_s:
                time.sleep(waiting[0].arrival_s - now_s)
                continue
            batch = list(takewhile(lambda request: request.arrival_s <= now_s, waiting[:max_batch]))  # noqa: B023
            num_generated = self._generate(batch)
            end_s = time.perf_counter() - start_s
            records += [self._record(request, num_generated, end_s) for request in batch]
        return records

    def _record(self, request: TraceRequest, num_generated: int, end_s: float) -> RequestRecord:
        num_tokens = min(num_generated, request.num_new_tokens)
        label = self._adapters[request.adapter].digest
        return answered(request.arrival_s, [end_s] * num_tokens, request.num_new_tokens, label)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[TraceRequest]) -> int:
        """Generate for a padded batch and return the number of tokens of each row."""
        prompts = [torch.tensor(request.prompt_token_ids) for request in batch]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        input_ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=self._pad)
        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            adapter_names=[self._adapters[request.adapter].digest for request in batch],
            max_new_tokens=max(request.num_new_tokens for request in batch),
            do_sample=False,
            num_beams=1,
        )
        return output.shape[1] - 1
