"""Draw a run's loss curve from its log. It knows the log's format only."""

from __future__ import annotations

import json
from pathlib import Path


def draw_loss_curve(log: Path, picture: Path, title: str) -> None:
    """Write a PNG of the training loss over steps.

    Raises:
        FileNotFoundError: no log.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    points = [(record["step"], record["loss"]) for record in records if "loss" in record]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1)
    axes.set(xlabel="step", ylabel="training loss", title=title)
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
