"""``medley demo``: a server of its own, one dialogue five ways at once over both protocols, an upload meanwhile."""

from loadtest.demo.cli import app

__all__ = ["app"]
