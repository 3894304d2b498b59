"""Logs for people or for machines: one line a record, as JSON or for a console, the same fields in both.

Records carry facts by ``extra={...}``: ids, digests, counts, codes. References and secrets are never put into a record,
user text and generated text only where :attr:`LogConfig.texts` allows it; nothing here could take them out again. Logs
of uvicorn and grpc join the same handler.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import Literal, TextIO

# The last three are put into records by uvicorn, by vLLM and by Ray.
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName", "color_message", "vllm_process_name", "_ray_timestamp_ns")
}
_JOINED_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "grpc")
# These tell every step of every request, or name the files they fetch.
_QUIET_LOGGERS = ("absl", "uvicorn.access", "httpx", "httpcore", "urllib3", "alembic", "filelock", "fsspec", "datasets")


Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LEVELS: tuple[Level, ...] = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How to log.

    Attributes:
        format: ``json`` or ``console``.
        level: Least level shown.
        requests: Whether each ended request gives a line, refused ones too.
        texts: Whether that line has what the caller wrote and what was answered. Off, no text is in any log.
    """

    format: Literal["json", "console"] = "console"
    level: Level = "INFO"
    requests: bool = False
    texts: bool = False


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the record's own fields, the error if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": _utc(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_own_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, then ``key=value`` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the error's lines if any."""
        fields = "".join(f" {key}={value}" for key, value in _own_fields(record).items())
        line = f"{_utc(record)} {record.levelname:<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send all logs of this process to one handler; call once, at the start.

    Args:
        config: How to log.
        stream: Where to; standard error when None, as standard output belongs to the command.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level)
    for name in _JOINED_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def present_config() -> LogConfig:
    """Return how this process logs, for a process of its own to log alike; what only requests need is left out."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    numbers = logging.getLevelNamesMapping()
    level: Level = next((name for name in LEVELS if root.getEffectiveLevel() <= numbers[name]), "ERROR")
    return LogConfig("json" if is_json else "console", level)


def _utc(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _own_fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
