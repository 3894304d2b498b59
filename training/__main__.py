"""`python -m training`: the same commands as `medley train`."""

from training.cli import app

app()
