"""Text to token ids and back. Knows no model and no torch.

:class:`FileTokenizer` reads a ``tokenizer.json``; :class:`ByteTokenizer` is the toy the fake engine speaks. Both may be
used from several threads at once.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as RustTokenizer

from server.core.errors import FailedPreconditionError


class Tokenizer(Protocol):
    """What the service needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` with the special tokens the model expects."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids without special tokens; broken UTF-8 becomes U+FFFD."""
        ...

    def piece(self, token_id: int) -> str:
        """Return the text one token adds within a text, its leading space included."""
        ...


class FileTokenizer:
    """A tokenizer read from a ``tokenizer.json``.

    Args:
        path: The file.

    Raises:
        FailedPreconditionError: If the file is missing or no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        """Read the file."""
        try:
            self._tokenizer = RustTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise FailedPreconditionError(f"cannot read the tokenizer {path.name}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._anchor = list(self._tokenizer.encode("a", add_special_tokens=False).ids)
        self.piece = lru_cache(maxsize=8192)(self._piece)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` with special tokens."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _piece(self, token_id: int) -> str:
        # Decoders strip the space before a text's first token, so the token is decoded behind another.
        return self.decode([*self._anchor, token_id])[len(self.decode(self._anchor)) :]


class ByteTokenizer:
    """UTF-8 bytes as tokens: byte + 3 behind pad, end of sequence and unknown, as in ByT5.

    Source:
        Byte vocabulary: arXiv:2105.13626.
    """

    END_OF_SEQUENCE = 1
    _NUM_SPECIAL = 3

    def encode(self, text: str) -> list[int]:
        """Return the bytes of ``text`` as ids, then the end of the sequence."""
        return [byte + self._NUM_SPECIAL for byte in text.encode()] + [self.END_OF_SEQUENCE]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids; ids that are no byte are left out."""
        values = (token_id - self._NUM_SPECIAL for token_id in token_ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="replace")

    def piece(self, token_id: int) -> str:
        """Return the text of one token."""
        return self.decode([token_id])
