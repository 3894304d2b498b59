"""Soft prompts: prompt tuning, P-tuning (whose network PEFT folds away at saving) and multitask prompt tuning.

For an encoder-decoder PEFT stores a prompt twice, for the encoder and for the decoder; only the first is used. Any
thread.

Shapes: P virtual tokens, D width of the base, K tasks, R ranks of a task.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/prompt_tuning/config.py and, beside it,
    ``p_tuning`` and ``multitask_prompt_tuning``; arXiv:2104.08691, arXiv:2103.10385, arXiv:2303.02861.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from adapters.adapter_folder import CONFIG_FILE
from adapters.adapter_weights import Float32Array, SoftPromptWeights
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from adapters.peft_config import ABOUT_ORIGIN, base_model_of, count, refuse_other_fields
from adapters.peft_families.plan import PromptPlan
from adapters.peft_tensors import TensorReader, matrix_shape, servable
from adapters.safetensors_file import TensorEntry
from adapters.strict_json import show

ROWS, TASK_COLS, TASK_ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
SIZE_FIELDS = frozenset(
    {"num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_layers", "num_attention_heads"}
)
_FIELDS = (
    ABOUT_ORIGIN
    | SIZE_FIELDS
    # How the rows were begun and trained.
    | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}
    | {"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"}
    | {"prompt_tuning_init_state_dict_path", "prompt_tuning_init_task", "num_ranks", "num_tasks"}
)


@dataclass(frozen=True)
class SoftPrompt:
    """What sizes a soft prompt.

    Attributes:
        peft_type: As the config says it.
        task_type: The kind of model it was trained for, as the config says it, or None.
        num_virtual_tokens: Rows that are used, P.
        base_model: Name of the base, for people.
    """

    peft_type: str
    task_type: object
    num_virtual_tokens: int
    base_model: str

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Self:
        """Return what a config says.

        Raises:
            InvalidAdapterError: If a field is missing or out of range.
            UnsupportedAdapterError: If it switches on something not computed.
        """
        refuse_other_fields(raw, _FIELDS)
        num_virtual_tokens = count(raw.get("num_virtual_tokens"), "num_virtual_tokens")
        return cls(str(raw["peft_type"]), raw.get("task_type"), num_virtual_tokens, base_model_of(raw))

    def plan(self, entries: Mapping[str, TensorEntry], base: BaseModelSpec) -> PromptPlan:
        """Check names and shapes of the tensors; read no value.

        Raises:
            InvalidAdapterError: If tensors are missing, do not belong, or contradict each other or the config.
            UnsupportedAdapterError: If it is for another kind of model, or holds several tasks.
            WrongBaseError: If it is not as wide as the base.
        """
        check_task_type(self.task_type, base)
        is_multitask = self.peft_type == "MULTITASK_PROMPT_TUNING"
        check_names(entries, {ROWS, TASK_COLS, TASK_ROWS} if is_multitask else {ROWS}, self.peft_type)
        num_rows, width = matrix_shape(entries, ROWS)
        if width != base.d_model:
            raise WrongBaseError(f"the soft prompt is {width} wide; {show(base.model_id)} needs {base.d_model}")
        copies = (1, 2) if base.is_encoder_decoder else (1,)
        if num_rows not in [num_copies * self.num_virtual_tokens for num_copies in copies]:
            raise InvalidAdapterError(
                f"the soft prompt has {num_rows} rows, but {CONFIG_FILE} says {self.num_virtual_tokens} tokens"
            )
        if is_multitask:
            _check_task(entries, num_rows, width)
        load = partial(_load, self.num_virtual_tokens, is_multitask)
        return PromptPlan(AdapterKind.PROMPT, self.num_virtual_tokens, load)


def check_task_type(task_type: object, base: BaseModelSpec) -> None:
    """Accept a prompt that was trained for the base's kind of model, or says nothing of it.

    Raises:
        UnsupportedAdapterError: If it says to be for another kind of model.
    """
    name, needed = ("an encoder-decoder", "SEQ_2_SEQ_LM") if base.is_encoder_decoder else ("decoder-only", "CAUSAL_LM")
    if task_type not in (None, needed):
        raise UnsupportedAdapterError(
            f"a soft prompt for {show(task_type)} is not supported; the base is {name}: {needed}"
        )


def check_names(entries: Mapping[str, TensorEntry], wanted: set[str], peft_type: str) -> None:
    """Accept a file that holds exactly the tensors ``wanted``.

    Raises:
        InvalidAdapterError: If it holds others or not all.
    """
    if entries.keys() != wanted:
        raise InvalidAdapterError(
            f"{CONFIG_FILE} says {peft_type}, whose tensors are {', '.join(sorted(wanted))} and no others"
        )


def _check_task(entries: Mapping[str, TensorEntry], num_rows: int, width: int) -> None:
    cols, rows = entries[TASK_COLS].shape, entries[TASK_ROWS].shape
    fits = len(cols) == len(rows) == 3 and 0 not in cols and cols[0] == rows[0] and cols[2] == rows[1]
    if not fits or cols[1] != num_rows or rows[2] != width:
        raise InvalidAdapterError(
            f"{TASK_COLS} {list(cols)} and {TASK_ROWS} {list(rows)} do not fit the prompt's [{num_rows}, {width}]"
        )
    if cols[0] != 1:
        raise UnsupportedAdapterError(
            f"the adapter holds {cols[0]} tasks; save one adapter a task: row t of {TASK_COLS} and {TASK_ROWS} alone"
        )


def _load(num_tokens: int, is_multitask: bool, reader: TensorReader) -> SoftPromptWeights:
    rows: Float32Array = reader.load(ROWS)[:num_tokens]
    if is_multitask:
        task = reader.load(TASK_COLS)[0, :num_tokens] @ reader.load(TASK_ROWS)[0]
        rows = servable(rows * task, TASK_COLS)
    return SoftPromptWeights(rows.copy())
