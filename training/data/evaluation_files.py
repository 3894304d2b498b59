"""Read any evaluation file for the contamination check: whatever texts its records hold. It knows no columns.

The one column with a meaning is `split`: records of the split `train` are not what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from training.data.contamination import Document
from training.data.problems import ProblemLog
from training.data.rows import file_records


def read_evaluation_documents(names: Iterable[str], data_dir: Path, log: ProblemLog) -> Iterator[Document]:
    """Give one document a record, with every text in it, lists and mappings included.

    Raises:
        Nothing. What cannot be read is noted in `log`.
    """
    for name in names:
        for record in file_records(name, data_dir, log):
            if record.split != "train":
                yield Document(record.origin, tuple(_texts(record.values)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
