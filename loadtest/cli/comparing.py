"""``medley loadtest compare`` and ``report``."""


def compare() -> None:
    """Compare."""


def report() -> None:
    """Report."""
