import io
import json
import logging
import logging.config
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.vllm.logs import write_logging_config
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
