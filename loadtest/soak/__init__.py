"""The soak: mixed traffic and changes of adapters for a long time, and whether the server stayed as it was.

``python -m loadtest.soak`` is the command, ``make soak`` calls it. It watches the server's processes from outside, so
the server must run on this machine.
"""
