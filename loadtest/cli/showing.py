"""Writes the page and the pictures, or says why there are no pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from loadtest.page import Page


def write_page(
    folder: Path,
    pictures: Mapping[str, Callable[[], bytes]],
    page: Callable[..., Page],
    console: Console,
) -> None:
    """Write ``report.html``, and each picture as a PNG beside it.

    Args:
        folder: Where.
        pictures: What draws each, by its file's stem.
        page: Makes the page of the pictures.
        console: Told if there can be no pictures.
    """
    drawn: dict[str, bytes] = {}
    try:
        drawn = {name: draw() for name, draw in pictures.items()}
    except ImportError as error:
        console.print(f"No pictures, install medley[loadtest]: {error}", style="yellow", markup=False)
    for name, png in drawn.items():
        (folder / f"{name}.png").write_bytes(png)
    titled = {name.replace("-", " ").capitalize(): png for name, png in drawn.items()}
    (folder / "report.html").write_text(page(pictures=titled).html(), encoding="utf-8")
