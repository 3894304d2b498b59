"""Write finished models and adapters as plain folders: bfloat16 safetensors and JSON. It does not train.

A folder is what `transformers` or PEFT themselves would load with `from_pretrained`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from adapters.manifest import MANIFEST_FILE, AdapterManifest


def export_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a bfloat16 copy of the model, its generation defaults and its tokenizer.

    Raises:
        OSError: the folder cannot be written.
    """
    exported = copy.deepcopy(model).to(torch.bfloat16).eval()
    exported.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def export_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Save the adapter as PEFT names its files and tensors, in bfloat16, naming its base by `base_name`.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model)
    save_file(
        {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = base_name
    config.save_pretrained(folder)


def write_manifest(manifest: AdapterManifest, folder: Path) -> None:
    """Write an adapter's `medley.json`.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def write_base_manifest(model_id: str, prompt_template: str, folder: Path) -> None:
    """Write the base's `medley.json`: its name, and the template used where no adapter brings its own.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {"model_id": model_id, "prompt_template": prompt_template}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
