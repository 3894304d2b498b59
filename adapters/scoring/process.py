"""``python -m adapters.scoring.process``: scores texts for the process that started it, one JSON line in, one out.

In: ``[prediction, references, metrics, source]``. Out: ``{"figures": {...}}``, or ``{"error": traceback}``. Ends when
its input does, so it outlives nobody. It takes the processor only where nobody else wants it much.
"""

import json
import os
import signal
import sys
import traceback
from typing import BinaryIO

from adapters.scoring.plugins import PluginScorer

# At 10 the system gives a tenth of what it gives to a process at 0, as long as both want all of it.
_NICENESS = 10


def main() -> None:
    """Be that process."""
    # An interrupt at a terminal is for whoever started us, who says so by the end of our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        # What a metric prints must not stand among the answers.
        os.dup2(2, 1)
        _answer_all(sys.stdin.buffer, answers)


def _answer_all(questions: BinaryIO, answers: BinaryIO) -> None:
    scorer = PluginScorer()
    for line in questions:
        prediction, references, metrics, source = json.loads(line)
        try:
            answer: dict[str, object] = {"figures": scorer.score(prediction, references, metrics, source)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
