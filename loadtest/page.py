"""One HTML file with everything in it: tables, pictures, and what was asked. Asks no other host for anything."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from rich.table import Table

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Page:
    """What is on it.

    Attributes:
        title: Its heading.
        sentences: What is to be read first.
        pictures: PNGs by title.
        tables: The tables that the terminal shows.
        asked: What was asked for.
    """

    title: str
    sentences: Sequence[str]
    pictures: Mapping[str, bytes]
    tables: Sequence[Table]
    asked: Mapping[str, object]

    def html(self) -> str:
        """Return the page."""
        # Everything that is put in is escaped: names and messages come from servers.
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
        pictures = [
            {"title": title, "data": base64.b64encode(png).decode("ascii")} for title, png in self.pictures.items()
        ]
        return environment.get_template("page.html").render(
            title=self.title,
            sentences=self.sentences,
            pictures=pictures,
            tables=[_plain(table) for table in self.tables],
            asked=yaml.safe_dump(dict(self.asked), sort_keys=False, allow_unicode=True),
        )


def _plain(table: Table) -> dict[str, object]:
    """Return a terminal's table as text cells."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title or ""),
        "head": [str(column.header) for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
    }
