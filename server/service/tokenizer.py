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

_NUM_KEPT_PIECES = 32_768


class Tokenizer(Protocol):
    """What the service needs of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``, with the special tokens the model expects around it unless told otherwise."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids, special tokens left out or by their names; broken UTF-8 becomes U+FFFD."""
        ...

    def piece(self, token_id: int) -> str:
        """Return the text one token adds within a text, its leading space included; a special one's name."""
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
        self._anchor = self.encode("a", add_special_tokens=False)
        self.piece = lru_cache(maxsize=_NUM_KEPT_PIECES)(self._piece)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``, with special tokens unless told otherwise."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids, special tokens left out or by their names."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def _piece(self, token_id: int) -> str:
        # Decoders strip the space before a text's first token, so the token is decoded behind another.
        before = self.decode(self._anchor)
        return self.decode([*self._anchor, token_id], skip_special_tokens=False)[len(before) :]


class ByteTokenizer:
    """UTF-8 bytes as tokens: byte + 3 behind pad, end of sequence and unknown, as in ByT5.

    Source:
        Byte vocabulary: arXiv:2105.13626.
    """

    END_OF_SEQUENCE = 1
    _SPECIAL = (b"<pad>", b"</s>", b"<unk>")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the bytes of ``text`` as ids, then the end of the sequence unless told otherwise."""
        token_ids = [byte + len(self._SPECIAL) for byte in text.encode()]
        return [*token_ids, self.END_OF_SEQUENCE] if add_special_tokens else token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids; those that are neither byte nor special are left out."""
        return b"".join(self._bytes(each, is_skipped=skip_special_tokens) for each in token_ids).decode(
            errors="replace"
        )

    def piece(self, token_id: int) -> str:
        """Return the text of one token."""
        return self.decode([token_id], skip_special_tokens=False)

    def _bytes(self, token_id: int, *, is_skipped: bool) -> bytes:
        if token_id < len(self._SPECIAL):
            return b"" if is_skipped else self._SPECIAL[token_id]
        value = token_id - len(self._SPECIAL)
        return bytes([value]) if value < 256 else b""
