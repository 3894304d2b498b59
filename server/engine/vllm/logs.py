"""vLLM's logs, from all of its processes, in the form of ours.

In this process vLLM's loggers hand their records up to the root logger, as every other logger does. Its own processes
are begun anew and know nothing of our handlers, so vLLM carries the name of a file to them that says what to call
there: :func:`join_logs`, which puts our handler on their root logger, and adds the name of the process to each record.

vLLM tells ids, counts and shapes; what it would tell at DEBUG, nobody has read, so it is never asked to. The one module
that writes out requests, after a step has failed, is silenced.

Source:
    vLLM 0.32.0: ``vllm/logger.py``, ``vllm/config/logging.py``, ``vllm/logging_utils/dump_input.py``.
"""

import json
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Literal

from server.observability.logging import JsonFormatter, LogConfig, configure_logging

_log = logging.getLogger(__name__)
_DUMPS_REQUESTS = "vllm.logging_utils.dump_input"


def write_logging_config(file: Path) -> None:
    """Write the file from which every process of vLLM learns how to log: as this one does.

    It must stay until the last of them has begun.
    """
    root = logging.getLogger()
    level = logging.getLevelName(max(root.getEffectiveLevel(), logging.INFO))
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    join = {
        "()": f"{__name__}.{join_logs.__name__}",
        "owner_pid": os.getpid(),
        "line_format": "json" if is_json else "console",
        "least_level": level,
    }
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        # Called for what it does; vLLM's loggers have no handler of their own.
        "handlers": {"medley": join},
        "loggers": {
            "vllm": {"level": level, "handlers": [], "propagate": True},
            _DUMPS_REQUESTS: {"level": "CRITICAL"},
        },
    }
    file.write_text(json.dumps(config))


def join_logs(
    owner_pid: int, line_format: Literal["json", "console"], least_level: Literal["INFO", "WARNING", "ERROR"]
) -> logging.Handler:
    """Let a process of vLLM log as ours does; called by ``logging.config`` as the file says.

    Args:
        owner_pid: The process that wrote the file; its logs are left as they are.
        line_format: How lines are written.
        least_level: Least level shown.

    Returns:
        A handler that does nothing, as ``logging.config`` wants one.
    """
    if os.getpid() != owner_pid:
        configure_logging(LogConfig(line_format, least_level))
        logging.captureWarnings(capture=True)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_name_process)
    return logging.NullHandler()


def _name_process(record: logging.LogRecord) -> bool:
    record.engine_process = multiprocessing.current_process().name
    return True
