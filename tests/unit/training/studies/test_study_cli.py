"""`medley study`: a config, a report; a mistake is one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytestmark = pytest.mark.torch
CONFIGS = Path("training/configs/studies")


def test_study_command_writes_the_report_and_says_where(tmp_path):
    from training.studies.cli import app

    result = CliRunner().invoke(app, ["prompt-neighbours", "--out", str(tmp_path), "--set", "num_neighbours=2"])
    assert result.exit_code == 0, result.output
    assert f"report: {tmp_path / 'report.md'}" in result.output
    assert "virtual tokens stand on a word" in (tmp_path / "report.md").read_text()


def test_study_command_unknown_key_exits_with_one_line(tmp_path):
    from training.studies.cli import app

    result = CliRunner().invoke(app, ["memory", "--out", str(tmp_path), "--set", "ranks=2"])
    assert result.exit_code != 0
    assert "unknown key 'ranks'" in result.output


@pytest.mark.parametrize("quick", [False, True])
def test_shipped_study_files_load_in_both_forms(quick):
    from training.studies.cli import _STUDIES
    from training.studies.config import load_study

    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(_STUDIES)
    for name, study in _STUDIES.items():
        config = load_study(study.kind, CONFIGS / f"{name}.yaml", [], quick=quick)
        for run in (*getattr(config, "runs", ()), *getattr(config, "methods", ())):
            assert isinstance(run, str) or Path(run.recipe).is_file()
