"""What a server's processes hold: memory, file handles, threads; read from the operating system by psutil.

psutil is imported when it is needed. Knows no protocol: a server is a process and all that come of it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """What a tree of processes held at one time.

    Attributes:
        at_s: When, in seconds from the start of the run.
        rss_bytes: Resident memory, the sum of all processes': what they share counts for each.
        num_fds: Open file handles.
        num_threads: Threads.
        num_processes: Processes.
    """

    at_s: float
    rss_bytes: int
    num_fds: int
    num_threads: int
    num_processes: int


class ProcessGoneError(Exception):
    """There is no such process, or it may not be looked at."""


class ProcessTree:
    """A process and all that come of it.

    Args:
        pid: Its process id.

    Raises:
        ProcessGoneError: If there is none.
        ImportError: If psutil is not installed.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        try:
            self._root = psutil.Process(pid)
        except psutil.Error as error:
            raise ProcessGoneError(f"cannot look at process {pid}: {error}") from error

    def sample(self, at_s: float) -> ProcessSample:
        """Look at it now.

        Args:
            at_s: What the time is called.

        Raises:
            ProcessGoneError: If the first process has ended.
        """
        import psutil

        try:
            found = [_held(self._root)]
            children = self._root.children(recursive=True)
        except psutil.Error as error:
            raise ProcessGoneError(f"process {self._root.pid} is gone: {error}") from error
        for child in children:
            try:
                found.append(_held(child))
            except psutil.Error:
                # It has ended meanwhile.
                continue
        rss_bytes, num_fds, num_threads = map(sum, zip(*found, strict=True))
        return ProcessSample(at_s, rss_bytes, num_fds, num_threads, len(found))


def _held(process: "psutil.Process") -> tuple[int, int, int]:
    with process.oneshot():
        return process.memory_info().rss, process.num_fds(), process.num_threads()
