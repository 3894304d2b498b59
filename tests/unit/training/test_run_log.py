"""Where a run's figures go: the JSON lines, TensorBoard, MLflow if asked, and the terminal."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.checkpoint import RunFolder
from training.config import LoopConfig
from training.errors import TrainingConfigError
from training.run_log import ProgressLine, RunLog

pytestmark = pytest.mark.torch


def _log(folder, first_step=0, **changes):
    return RunLog(RunFolder(folder), LoopConfig(**({"tensorboard": False} | changes)), "tickets", first_step)


def _mlflow(**functions):
    return SimpleNamespace(exceptions=SimpleNamespace(MlflowException=RuntimeError), **functions)


def _scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars("loss")]


def test_write_goes_to_json_lines_and_tensorboard(tmp_path):
    with _log(tmp_path, tensorboard=True) as log:
        log.write(1, {"loss": 2.5})
        log.write(2, {"loss": 2.25})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    assert _scalars(tmp_path) == [(1, 2.5), (2, 2.25)]


def test_run_log_that_goes_on_forgets_what_is_done_again(tmp_path):
    with _log(tmp_path, tensorboard=True) as log:
        log.write(1, {"loss": 2.5})
        log.write(2, {"loss": 9.0})
    with _log(tmp_path, first_step=1, tensorboard=True) as log:
        log.write(2, {"loss": 2.25})
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2.5, 2.25]
    assert _scalars(tmp_path) == [(1, 2.5), (2, 2.25)]


def test_run_log_without_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingConfigError, match=r"loop\.tensorboard=false"):
        _log(tmp_path, tensorboard=True)


def test_run_log_without_mlflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainingConfigError, match="pip install mlflow"):
        _log(tmp_path, mlflow="http://127.0.0.1:5000")


def test_run_log_with_mlflow_writes_there(tmp_path, monkeypatch):
    calls = []
    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    fake = _mlflow(**{name: lambda *a, _n=name, **k: calls.append((_n, a, k)) for name in names})
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with _log(tmp_path, mlflow="http://127.0.0.1:5000") as log:
        log.write(3, {"loss": 1.5})
    assert [name for name, *_ in calls] == list(names)
    assert calls[0][1] == ("http://127.0.0.1:5000",)
    assert calls[2][2] == {"run_name": "tickets"}
    assert calls[4][1:] == (({"loss": 1.5},), {"step": 3})


def test_run_log_mlflow_refuses_the_uri_says_so(tmp_path, monkeypatch):
    def refuse(name):
        raise RuntimeError("folders are not supported")

    fake = _mlflow(set_tracking_uri=lambda uri: None, set_experiment=refuse)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with pytest.raises(TrainingConfigError, match=r"does not take mlruns: folders are not supported"):
        _log(tmp_path, mlflow="mlruns")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_line_shows_loss_speed_and_time_left(is_terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120)
    with ProgressLine(100, console) as progress:
        progress.show(40, loss=2.5, tokens_per_s=1234.0, s_per_step=3.0)
        progress.say("held out: [1]")
    text = out.getvalue()
    for word in ("40/100", "loss 2.500", "1,234 tok/s", "3.0 min left", "held out: [1]"):
        assert word in text
    assert ("\x1b[" in text) == is_terminal
