"""``python -m server`` is ``medley``."""

from server.cli import main

main()
