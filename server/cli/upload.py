"""What ``medley adapters push`` sends: the files of a PEFT folder, an archive, or the address of a source.

Files are read while they are sent, never whole. Knows no server. One thread.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from adapters.adapter_folder import ALLOWED_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidAdapterError
from server.cli.client import Body


@contextmanager
def upload_body(what: str, alias: str | None, tags: list[str]) -> Iterator[Body]:
    """Give the body of an upload; its files stay open, and a bar shows their way, until the block ends.

    Args:
        what: A PEFT folder, an archive file, or a URL as ``hf://owner/repo``.
        alias: Alias to point at the new version, or None for none but what the server does by itself.
        tags: Tags of the new version.

    Raises:
        InvalidAdapterError: If there is nothing to send.
        OSError: If a file cannot be read.
    """
    path = Path(what)
    if not path.exists() and "://" in what:
        source = {"source": what, "alias": alias, "tags": tags}
        yield Body(json={key: value for key, value in source.items() if value})
        return
    parts = {"files": _folder_files(path)} if path.is_dir() else {"archive": [path]}
    with _watched(parts) as files:
        fields = {"alias": alias, "tags": ",".join(tags)}
        yield Body(fields={key: value for key, value in fields.items() if value}, files=files)


def _folder_files(folder: Path) -> list[Path]:
    """Return an adapter's files in a folder, or in the one folder in it where PEFT puts adapters with a name.

    Raises:
        InvalidAdapterError: If the config or the weights are missing.
    """
    inner = sorted(config.parent for config in folder.glob(f"*/{CONFIG_FILE}"))
    if not (folder / CONFIG_FILE).is_file() and len(inner) == 1:
        folder = inner[0]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InvalidAdapterError(f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote")
    # The weights last, so that a server can refuse the rest before they are on their way.
    names = sorted(ALLOWED_FILES - {WEIGHTS_FILE})
    return [folder / name for name in (*names, WEIGHTS_FILE) if (folder / name).is_file()]


@contextmanager
def _watched(parts: Mapping[str, list[Path]]) -> Iterator[list[tuple[str, tuple[str, FileIO]]]]:
    """Open the files by form field; a bar on standard error follows them, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    paths = [path for part in parts.values() for path in part]
    total_bytes = sum(path.stat().st_size for path in paths)
    positions = dict.fromkeys(paths, 0)
    with progress, ExitStack() as stack:
        bar = progress.add_task("sending", total=total_bytes)

        def watch(path: Path) -> _WatchedFile:
            def on_position(position: int) -> None:
                positions[path] = position
                sent_bytes = sum(positions.values())
                # What comes after the last byte is the server's part, and takes it longer.
                description = "checking" if sent_bytes >= total_bytes else "sending"
                progress.update(bar, completed=sent_bytes, description=description)

            return stack.enter_context(_WatchedFile(path, on_position))

        yield [(field, (path.name, watch(path))) for field, part in parts.items() for path in part]


class _WatchedFile(FileIO):
    """A file that tells where it is being read."""

    def __init__(self, path: Path, on_position: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._on_position = on_position

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._on_position(self.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        position = super().seek(offset, whence)
        self._on_position(position)
        return position
