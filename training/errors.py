"""The errors a user of `medley train` can cause. It knows no other room's errors."""

from __future__ import annotations


class TrainingError(Exception):
    """Base of every error raised by training for a mistake the user can repair."""


class TrainingDataError(TrainingError):
    """A data file is missing or has an unexpected form."""


class TrainingConfigError(TrainingError):
    """A recipe file has an unknown key or a value of the wrong kind."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, incomplete or belongs to another run."""


class TrainingRunError(TrainingError):
    """A run cannot go on: its loss is no number, or memory has run out."""


class PushError(TrainingError):
    """A finished adapter could not be uploaded, or is not of a kind that a server takes."""


class EvaluationError(TrainingError):
    """An adapter or a base cannot be evaluated as asked."""
