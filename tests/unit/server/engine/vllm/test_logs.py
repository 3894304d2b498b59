import io
import json
import logging
import logging.config
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.vllm.logs import telling_progress, write_logging_config
from server.observability.logging import LogConfig, configure_logging


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("vllm", "vllm.logging_utils.dump_input"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def _log_in_a_process_of_vllms(config_file: Path, log_file: Path) -> None:
    with log_file.open("w") as sys.stderr:
        logging.config.dictConfig(json.loads(config_file.read_text()))
        logging.getLogger("vllm.some.part").info("loaded %s", "weights")
        logging.getLogger("vllm.some.part").debug("too fine")
        logging.getLogger("vllm.logging_utils.dump_input").error("what users wrote")
        logging.getLogger("transformers").warning("beside it")


def in_a_process_of_vllms(tmp_path: Path) -> list[str]:
    config_file, log_file = tmp_path / "logging.json", tmp_path / "log"
    write_logging_config(config_file)
    process = multiprocessing.get_context("spawn").Process(
        target=_log_in_a_process_of_vllms, args=(config_file, log_file), name="EngineCore"
    )
    process.start()
    process.join()
    return log_file.read_text().splitlines()


def test_process_of_vllms_writes_json_where_we_do(tmp_path: Path) -> None:
    configure_logging(LogConfig("json", "INFO"), io.StringIO())
    first, second = map(json.loads, in_a_process_of_vllms(tmp_path))
    assert (first["logger"], first["message"], first["level"]) == ("vllm.some.part", "loaded weights", "INFO")
    assert (first["engine_process"], second["message"]) == ("EngineCore", "beside it")


def test_process_of_vllms_writes_lines_for_a_console_where_we_do(tmp_path: Path) -> None:
    configure_logging(LogConfig("console", "DEBUG"), io.StringIO())
    first, _ = in_a_process_of_vllms(tmp_path)
    assert first.endswith("INFO    loaded weights engine_process=EngineCore")


def test_process_of_vllms_keeps_to_our_level(tmp_path: Path) -> None:
    configure_logging(LogConfig("console", "WARNING"), io.StringIO())
    (line,) = in_a_process_of_vllms(tmp_path)
    assert "beside it" in line


def test_this_process_writes_vllms_records_by_its_own_handler(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure_logging(LogConfig("json", "INFO"), stream)
    write_logging_config(tmp_path / "logging.json")
    logging.config.dictConfig(json.loads((tmp_path / "logging.json").read_text()))
    logging.getLogger("vllm.config").info("in the parent", extra={"vllm_process_name": "MainProcess"})
    line = json.loads(stream.getvalue())
    assert line["message"] == "in the parent"
    assert not {"engine_process", "vllm_process_name"} & line.keys()


def test_long_start_is_told_of_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with telling_progress(interval_s=0.01):
        while not caplog.messages:
            time.sleep(0.001)
    assert caplog.messages[0] == "the engine is starting"
    assert caplog.messages[-1] == "the engine has started"
    assert isinstance(caplog.records[-1].elapsed_s, float)  # type: ignore[attr-defined]


def test_start_that_failed_is_not_said_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="no such model"), telling_progress():
        raise ValueError("no such model")
    assert caplog.messages == []
