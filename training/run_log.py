"""Where a run writes its figures: a JSON-lines file, TensorBoard, MLflow if asked, and the terminal.

It knows records of numbers and steps. It does not know models or what the figures mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from training.checkpoint import RunFolder
from training.config import LoopConfig
from training.errors import TrainingConfigError

_MLFLOW_NEEDED = "loop.mlflow needs MLflow: pip install mlflow"


class Tracker(Protocol):
    """One more place for a run's figures."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of a step."""

    def close(self) -> None:
        """Write out what is held back."""


class RunLog:
    """All records of one run, in every place the config names. Use as ``with``; one thread.

    Args:
        folder: The run's.
        config: Names the places, the run's length, and its seed.
        title: What the run is called in MLflow.
        first_step: Steps done before; later lines of an earlier try are dropped, since they will be done again.
    """

    def __init__(self, folder: RunFolder, config: LoopConfig, title: str, first_step: int) -> None:
        """Open the places.

        Raises:
            TrainingConfigError: a place needs a package that is not installed.
        """
        self._log = folder.log
        self._forget_after(first_step)
        self._trackers: list[Tracker] = []
        if config.tensorboard:
            self._trackers.append(TensorBoard(folder, first_step))
        if config.mlflow:
            self._trackers.append(MlFlow(config, title))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every place."""
        for tracker in self._trackers:
            tracker.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of a step everywhere.

        Raises:
            OSError: the disk refuses.
        """
        with self._log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **figures}) + "\n")
        for tracker in self._trackers:
            tracker.write(step, figures)

    def _forget_after(self, step: int) -> None:
        if not self._log.exists():
            return
        lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self._log.write_text("".join(kept), encoding="utf-8")


class TensorBoard:
    """Scalars in the run folder's `tensorboard/`.

    Args:
        folder: The run's.
        first_step: Steps done before; what an earlier try wrote of later ones is hidden.
    """

    def __init__(self, folder: RunFolder, first_step: int) -> None:
        """Open the event file.

        Raises:
            TrainingConfigError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingConfigError(
                "the log for TensorBoard needs a package: pip install 'medley[training]', or set loop.tensorboard=false"
            ) from error
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


class MlFlow:
    """Metrics of one MLflow run.

    Args:
        config: Its `mlflow` is the tracking URI; the whole of it is noted as parameters.
        title: Name of the run.
    """

    def __init__(self, config: LoopConfig, title: str) -> None:
        """Begin the run.

        Raises:
            TrainingConfigError: MLflow is not installed, or does not take the URI.
        """
        try:
            import mlflow
        except ImportError as error:
            raise TrainingConfigError(_MLFLOW_NEEDED) from error
        self._mlflow = mlflow
        mlflow.set_tracking_uri(config.mlflow)
        try:
            mlflow.set_experiment("medley")
            mlflow.start_run(run_name=title)
            mlflow.log_params(vars(config))
        except mlflow.exceptions.MlflowException as error:
            raise TrainingConfigError(f"loop.mlflow: MLflow does not take {config.mlflow}: {error}") from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of a step."""
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class ProgressLine:
    """What the terminal shows of a run: a bar where it is a terminal, else a line now and then. Use as ``with``.

    Args:
        max_steps: Steps of the whole run.
        console: Where to.
    """

    def __init__(self, max_steps: int, console: Console | None = None) -> None:
        """Take the length; nothing is shown yet."""
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._max_steps = max_steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=max_steps, figures="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()

    def show(self, step: int, loss: float, tokens_per_s: float, s_per_step: float) -> None:
        """Show where the run is: its mean loss and speed since the last time, and the time left.

        Raises:
            Nothing.
        """
        minutes_left = (self._max_steps - step) * s_per_step / 60
        figures = f"loss {loss:.3f} {tokens_per_s:,.0f} tok/s, {minutes_left:.1f} min left"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, figures=figures)
        else:
            self._console.print(f"step {step}/{self._max_steps} {figures}")

    def say(self, line: str) -> None:
        """Print a line beside the bar.

        Raises:
            Nothing.
        """
        self._console.print(line, markup=False, highlight=False)
