"""One sending process, started as ``python -m loadtest.worker``: a share comes in, records go out.

Standard input: one line with the job, then one with the time to start at, on the machine's monotonic clock. Its end
means that whoever started this is gone or has had enough. Standard output: one line when ready, one a record, and one
at the end. Keys come by standard input too, where no other user can read them.
"""

import asyncio
import json
import signal
import sys

from loadtest.clients.base import Credentials
from loadtest.clients.target import Target, connect
from loadtest.records import RequestRecord, to_line
from loadtest.runner import Runner
from loadtest.sender import RunnerConfig
from loadtest.shares import Share

READY = '{"worker":"ready"}\n'
END = '{"worker":"end"}\n'
MAX_LINE_BYTES = 1 << 30
"""A job holds every text of the run."""

# Often enough for progress; each write costs a call.
_FLUSH_S = 0.1


async def work() -> None:
    """Do one job."""
    inbox = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(inbox), sys.stdin)
    job = json.loads(await inbox.readline())
    share = Share.from_json(job["share"])
    target = Target(**job["target"])
    outbox: list[str] = []

    def keep(record: RequestRecord) -> None:
        outbox.append(to_line(record))

    async with connect(target, Credentials(**job["credentials"])) as client:
        runner = Runner(client, RunnerConfig(target.stream, target.timeout_s, share.max_in_flight), keep)
        _write([READY])
        started = await inbox.readline()
        if not started:
            return
        zero_s = json.loads(started)["zero_s"]
        if share.users is None:
            run = asyncio.create_task(runner.run(share.planned, zero_s))
        else:
            run = asyncio.create_task(runner.run_users(share.planned, share.users, zero_s))
        abandoned = asyncio.create_task(inbox.read())
        while not run.done() and not abandoned.done():
            await asyncio.wait({run, abandoned}, timeout=_FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
            _write(outbox)
        if not run.done():
            run.cancel()
            await asyncio.wait({run})
        else:
            run.result()
        abandoned.cancel()
        _write([*outbox, END])


def _write(lines: list[str]) -> None:
    sys.stdout.write("".join(lines))
    sys.stdout.flush()
    lines.clear()


if __name__ == "__main__":
    # An interrupt at the terminal reaches the whole group; whoever started this decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(work())
