"""Train and load the base's tokenizer: byte-level BPE that gives back any text exactly.

Digits stand alone and `#Person1#` stays whole, so numbers and DialogSum-style speakers can be copied token by token.
It does not know tasks or models.

Source: byte-level BPE, GPT-2 (https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

NUM_SENTINELS = 32
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
_WORDS = r" ?#Person\d+#|'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def sentinel(index: int) -> str:
    """Return the text of span-corruption sentinel number `index`.

    Raises:
        Nothing.
    """
    return f"<extra_id_{index}>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of exactly `vocab_size` entries on `texts`.

    Ids 0, 1, 2 are pad, end of text and unknown, as T5 numbers them; the sentinels follow.

    Raises:
        Nothing.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, EOS, UNK, *(sentinel(i) for i in range(NUM_SENTINELS))]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[sentinel(i) for i in range(NUM_SENTINELS)],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="right",
    )
