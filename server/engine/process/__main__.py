"""An engine's process: ``python -P server/engine/process/__main__.py SOCKET PATH...``; only the server starts it.

The socket is a file descriptor that it inherits, the paths are the server's, so that both import the same code.
"""

import signal
import sys


def main() -> None:
    """Be the process until the server closes the socket, or is gone."""
    # A terminal and a service manager send these to both processes. The server lets its requests end, for which it
    # needs the engine, and then closes the socket.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    descriptor, *paths = sys.argv[1:]
    sys.path[:] = paths
    from server.engine.process.host import run_host

    run_host(int(descriptor))


if __name__ == "__main__":
    main()
