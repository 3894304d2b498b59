"""The page on load tests against the code: its scenario is one, and it names every scenario, kind and option."""

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from loadtest.arrivals import ClosedLoop, Constant, Gamma, Poisson, Trace
from loadtest.cli import app
from loadtest.lengths import Fixed, FromData, Lognormal, UniformLength
from loadtest.popularity import OneHot, TracePopularity, Uniform, Weighted, Zipf
from loadtest.scenario_file import as_json, load_scenario, shipped_names

PAGE = (Path(__file__).parents[3] / "docs" / "loadtest.md").read_text()


def test_page_scenario_is_one_and_shows_every_key(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    scenario = load_scenario(str(file))
    shown = yaml.safe_load(text)
    known = as_json(scenario)
    assert set(known) - set(shown) == {"about", "num_requests"}
    for part in ("target", "lengths", "warm_up", "slo", "client"):
        assert set(shown[part]) == set(known[part])


@pytest.mark.parametrize("name", shipped_names())
def test_page_names_every_shipped_scenario(name: str) -> None:
    assert f"| `{name}` |" in PAGE


ARRIVALS = (Constant, Poisson, Gamma, Trace, ClosedLoop)
POPULARITY = (Uniform, Zipf, OneHot, Weighted, TracePopularity)
LENGTHS = (FromData, Fixed, UniformLength, Lognormal)


@pytest.mark.parametrize("kind", [*ARRIVALS, *POPULARITY, *LENGTHS])
def test_page_names_every_kind(kind: type) -> None:
    assert f"`{kind.__dataclass_fields__['kind'].default}`" in PAGE  # type: ignore[attr-defined]


def test_page_names_every_option_of_every_command() -> None:
    group = get_command(app)
    for command in (group, *group.commands.values()):  # type: ignore[attr-defined]
        options = [name for option in command.params for name in option.opts if name.startswith("--")]
        assert [name for name in options if name not in PAGE and "-completion" not in name] == []
