"""The whole corpus, and a way to look at it: ``python -m tests.hostile.corpus DIR`` writes every case into a folder."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.hostile import archive_cases, config_cases, name_cases, weights_cases
from tests.hostile.cases import Case

_PARTS = (weights_cases.CASES, config_cases.CASES, archive_cases.CASES, name_cases.CASES)
CORPUS: Mapping[str, Case] = {title: case for part in _PARTS for title, case in part.by_title.items()}
# Told apart by where they were added, so that nothing need be made to know.
FOLDERS = {**weights_cases.CASES.by_title, **config_cases.CASES.by_title}
ARCHIVES = archive_cases.CASES.by_title
SOURCES = {title: case for title, case in name_cases.CASES.by_title.items() if title.startswith("source")}
NAMES = {title: case for title, case in name_cases.CASES.by_title.items() if title not in SOURCES}
assert len(CORPUS) == sum(len(part.by_title) for part in _PARTS)


def write(case: Case, folder: Path) -> None:
    """Write one case: its bytes, and what it must be answered with; hostile file names stay in the description."""
    upload = case.make()
    folder.mkdir(parents=True)
    if upload.archive:
        (folder / f"archive{upload.archive_suffix}").write_bytes(upload.archive)
    sent = {}
    for number, (name, data) in enumerate(upload.files.items()):
        sent[f"file-{number}"] = name
        (folder / f"file-{number}").write_bytes(data)
    expected = {
        "code": case.code,
        "message has": case.message,
        "name": upload.name,
        "alias": upload.alias,
        "tags": upload.tags,
        "source": upload.source,
        "files": sent,
    }
    (folder / "case.json").write_text(json.dumps(expected, indent=2) + "\n")


def main() -> None:
    """Write the corpus into the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.hostile.corpus DIR")
    for title, case in CORPUS.items():
        write(case, Path(sys.argv[1]) / title)
    sys.stdout.write(f"{len(CORPUS)} cases in {sys.argv[1]}\n")


if __name__ == "__main__":
    main()
