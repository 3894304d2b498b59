"""Read records through the `datasets` library: a hub id, a folder it saved, or a folder of data files without script.

Only this file imports `datasets`, and only when it is asked to read. It does not know what the columns mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from training.data.problems import ProblemLog
from training.data.readers import Record

HUB_PREFIX = "hub:"
_ADVICE = "check the id or folder, the `#config`, and that the machine reaches the hub or has the data set in its cache"


def read_hub(path: str, log: ProblemLog) -> Iterator[Record]:
    """Give the records of `hub:<data set id>[#config]`; code that comes with a data set is never run.

    Raises:
        Nothing. What cannot be loaded is noted in `log`.
    """
    from datasets import load_dataset

    name, _, config = path.removeprefix(HUB_PREFIX).partition("#")
    yield from _records(lambda: load_dataset(name, config or None), path, log)


def read_folder(folder: Path, shown: str, log: ProblemLog) -> Iterator[Record]:
    """Give the records of a folder: one that `save_to_disk` wrote, or data files told apart by their names.

    Raises:
        Nothing. What cannot be loaded is noted in `log`.
    """
    from datasets import load_dataset, load_from_disk

    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    yield from _records(lambda: load_from_disk(folder) if saved else load_dataset(str(folder)), shown, log)


def _records(load: Callable[[], object], shown: str, log: ProblemLog) -> Iterator[Record]:
    from datasets import Dataset, DatasetDict
    from datasets.exceptions import DatasetsError

    try:
        loaded = load()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        log.add("unreadable data set", shown, " ".join(str(error).split()) or type(error).__name__, _ADVICE)
        return
    parts = loaded if isinstance(loaded, DatasetDict) else {"": loaded}
    for split, part in parts.items():
        if not isinstance(part, Dataset):
            log.add("unreadable data set", shown, f"a {type(part).__name__} is no table of rows", _ADVICE)
            continue
        where = f"{shown}:{split}" if split else shown
        if not len(part):
            log.add("empty file", where, "no records", "remove it from the recipe, or fill it")
        for number, values in enumerate(part, start=1):
            own = values.get("split")
            yield Record(values, f"{where}:{number}", str(split) or (own if isinstance(own, str) else ""))
