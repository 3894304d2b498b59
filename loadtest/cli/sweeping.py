"""``medley loadtest sweep``."""


def sweep() -> None:
    """Find the knee."""
