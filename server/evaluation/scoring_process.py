"""Has texts scored by a process of its own, which is started when it is first needed and again when it has ended.

Scoring is Python all the way, and takes longer with the square of a text's length: in the server's own interpreter it
would hold up every answer being made. In a process apart, a metric that hangs, crashes or eats all memory costs the
scores of one text.
"""

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO

from server.core.errors import UnavailableError

_log = logging.getLogger(__name__)
_COMMAND = (sys.executable, "-m", "adapters.scoring.process")
# Long enough to load any metric; a text takes milliseconds.
_LIMIT_S = 60.0
_END_S = 5.0
_CHUNK_BYTES = 1 << 16


class ScoringProcess:
    """A :class:`~server.evaluation.evaluator.Scorer`. Use it from one thread at a time.

    Args:
        command: What to start; it speaks as :mod:`adapters.scoring.process` says.
        limit_s: Longest time a text may take; the process is killed then.
    """

    def __init__(self, command: Sequence[str] = _COMMAND, limit_s: float = _LIMIT_S) -> None:
        """Start nothing yet."""
        self._command = tuple(command)
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def score(
        self, prediction: str, references: Sequence[str], metrics: Sequence[str] = (), source: str = ""
    ) -> dict[str, float]:
        """Return figures by name, as :meth:`adapters.scoring.plugins.PluginScorer.score` gives them.

        Raises:
            UnavailableError: If the process died of the text or took too long for it.
            RuntimeError: If a metric failed; with what it said.
            OSError: If no process can be started.
        """
        question = json.dumps([prediction, list(references), list(metrics), source]).encode() + b"\n"
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
            answer = json.loads(_read_line(process.stdout, self._limit_s))
        except (OSError, EOFError) as error:
            self._kill()
            _log.warning("the scoring process %s", error or "died")
            raise UnavailableError("scoring was interrupted; try again later") from error
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return dict(answer["figures"])

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            assert process.stdout is not None
            process.stdout.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.close()


def _read_line(stream: IO[bytes], limit_s: float) -> bytes:
    """Return the next line of a pipe.

    Raises:
        EOFError: If the other end is closed.
        TimeoutError: If it does not come in time.
    """
    # Not select(), which takes no descriptor over 1023; a server has that many connections.
    arrived, until_s, line = select.poll(), time.monotonic() + limit_s, b""
    arrived.register(stream, select.POLLIN)
    while not line.endswith(b"\n"):
        if not arrived.poll(max(until_s - time.monotonic(), 0.0) * 1e3):
            raise TimeoutError(f"took over {limit_s:.0f} s for a text")
        chunk = os.read(stream.fileno(), _CHUNK_BYTES)
        if not chunk:
            raise EOFError
        line += chunk
    return line
