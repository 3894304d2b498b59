"""Upload a finished adapter to a running server, by the very command that people use for it.

The server's own command line does the work in a process of its own: its repeats, keys and certificates come from the
same options and environment (`MEDLEY_KEY`, `MEDLEY_CA_FILE`, ...), and training needs no second client.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from training.errors import PushError


def push_adapter(folder: Path, name: str, server: str, alias: str | None) -> str:
    """Upload `folder` as the next version of `name` and wait until it is ready; return what the command says.

    Args:
        folder: PEFT folder with its manifest.
        name: of the adapter.
        server: its address, `http://host:port`.
        alias: to point at the new version, or None.

    Raises:
        PushError: the server does not answer or does not take it; the message is the command's own.
    """
    command = [sys.executable, "-m", "server", "adapters", "push", str(folder), "--name", name, "--server", server]
    if alias is not None:
        command += ["--alias", alias]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode != 0:
        # The lines before the last tell of repeats.
        reason = (done.stderr.strip().splitlines() or [f"the command ended with status {done.returncode}"])[-1]
        raise PushError(f"{folder} was trained but not uploaded: {reason}")
    return done.stdout.strip()
