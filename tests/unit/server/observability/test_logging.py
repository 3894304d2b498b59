import io
import json
import logging
from collections.abc import Iterator

import pytest

from server.observability.logging import LogConfig, configure_logging


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(log_format: str, logger: str = "server.test", **extra: object) -> str:
    stream = io.StringIO()
    configure_logging(LogConfig(format=log_format), stream)  # type: ignore[arg-type]
    logging.getLogger(logger).warning("it %s", "happened", extra=extra)
    return stream.getvalue()


def test_json_log_has_one_object_a_line_with_the_fields_of_the_record() -> None:
    line = json.loads(logged("json", request_id="r-1", digests=["ab"]))
    assert line["message"] == "it happened"
    assert line["level"] == "WARNING"
    assert (line["request_id"], line["digests"]) == ("r-1", ["ab"])
    assert line["time"].endswith("Z")


def test_console_log_shows_the_same_fields() -> None:
    assert "it happened request_id=r-1" in logged("console", request_id="r-1")


@pytest.mark.parametrize("logger", ["uvicorn.error", "grpc", "uvicorn"])
def test_logs_of_the_front_ends_libraries_join(logger: str) -> None:
    logging.getLogger(logger).addHandler(logging.NullHandler())
    assert json.loads(logged("json", logger))["logger"] == logger


def test_json_log_of_an_error_stays_on_one_line() -> None:
    stream = io.StringIO()
    configure_logging(LogConfig(format="json"), stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("server.test").exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: broken" in json.loads(stream.getvalue())["error"]
