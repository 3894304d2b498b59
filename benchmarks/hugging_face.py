"""Three peers: ``transformers.generate`` on the base, PEFT's mixed batch, and PEFT switching adapter by adapter.

All read the folders our engine reads and serve in its dtype.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel, T5ForConditionalGeneration

from benchmarks.closed_batch import ClosedBatch, Tokens


class HuggingFace:
    """The models of the three peers.

    Args:
        batch: What they serve.
        device: Where.
    """

    def __init__(self, batch: ClosedBatch, device: str = "cpu") -> None:
        self._batch = batch
        self._device = device
        self._dtype = getattr(torch, batch.dtype)
        self._base = T5ForConditionalGeneration.from_pretrained(batch.base, dtype=self._dtype).eval().to(device)
        self._peft = self._with_loras()

    def base_only(self) -> Tokens:
        """Generate for all rows at once, no adapters."""
        return self._generate(self._base, self._batch.prompts)

    def mixed(self) -> Tokens:
        """Generate for all rows at once, each with its own adapter."""
        return self._generate(
            self._peft, self._batch.prompts, adapter_names=[lora.digest for lora in self._batch.loras]
        )

    def switching(self) -> Tokens:
        """Switch the adapter and generate for its rows, one adapter after the other."""
        tokens: Tokens = [[] for _ in self._batch.prompts]
        for lora, rows in self._batch.rows_by_lora.items():
            self._peft.set_adapter(lora.digest)
            generated = self._generate(self._peft, [self._batch.prompts[row] for row in rows])
            for row, found in zip(rows, generated, strict=True):
                tokens[row] = found
        return tokens

    def _with_loras(self) -> PeftModel:
        model = T5ForConditionalGeneration.from_pretrained(self._batch.base, dtype=self._dtype)
        first, *others = self._batch.rows_by_lora
        peft_model = PeftModel.from_pretrained(model, first.path, adapter_name=first.digest)
        for lora in others:
            peft_model.load_adapter(lora.path, adapter_name=lora.digest)
        # PEFT loads adapters in float32; computing in two dtypes would cost it time.
        return peft_model.to(device=self._device, dtype=self._dtype).eval()

    @torch.inference_mode()
    def _generate(
        self, model: PreTrainedModel | PeftModel, prompts: Sequence[tuple[int, ...]], **options: list[str]
    ) -> Tokens:
        input_ids = torch.tensor(prompts, device=self._device)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=self._batch.num_new_tokens,
            do_sample=False,
            num_beams=1,
            **options,
        )
        return output[:, 1:].tolist()
