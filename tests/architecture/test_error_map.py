"""Every code has a status in both front ends, and every error of both trees has a code."""

import http

import grpc
import pytest

from adapters import errors as adapter_errors
from server.api.grpc.errors import GRPC_STATUSES
from server.api.http.errors import CLIENT_CLOSED_REQUEST, HTTP_ERRORS, error_response
from server.core.errors import ADAPTER_ERROR_CODES, ErrorCode, MedleyError, code_of


def _tree(root: type[Exception]) -> list[type[Exception]]:
    return [root, *(below for child in root.__subclasses__() for below in _tree(child))]


MEDLEY_ERRORS = [error for error in _tree(MedleyError) if error.__module__.startswith("server.")]
ADAPTER_ERRORS = [error for error in _tree(adapter_errors.AdapterError) if error.__module__.startswith("adapters.")]


@pytest.mark.parametrize("code", ErrorCode)
def test_code_has_a_status_in_each_table(code: ErrorCode) -> None:
    status = HTTP_ERRORS[code].status
    assert status == CLIENT_CLOSED_REQUEST or http.HTTPStatus(status) >= 400
    assert GRPC_STATUSES[code] is grpc.StatusCode[code.name]


def test_tables_hold_nothing_but_codes() -> None:
    assert set(HTTP_ERRORS) == set(ErrorCode) == set(GRPC_STATUSES)


def test_http_statuses_tell_the_codes_apart() -> None:
    assert len({entry.status for entry in HTTP_ERRORS.values()}) == len(ErrorCode)


@pytest.mark.parametrize("error", MEDLEY_ERRORS)
def test_medley_error_has_a_code_of_the_enum(error: type[MedleyError]) -> None:
    assert code_of(error("x")) is error.code
    assert error.code in ErrorCode


def test_each_code_has_exactly_one_medley_error() -> None:
    codes = [error.code for error in MEDLEY_ERRORS if error is not MedleyError]
    assert sorted(codes) == sorted(ErrorCode)


@pytest.mark.parametrize("error", [error for error in ADAPTER_ERRORS if error is not adapter_errors.AdapterError])
def test_adapter_error_has_a_code_of_its_own(error: type[adapter_errors.AdapterError]) -> None:
    assert error in ADAPTER_ERROR_CODES
    assert code_of(error("x")) is ADAPTER_ERROR_CODES[error]


def test_unknown_error_says_nothing_of_itself() -> None:
    response = error_response(ValueError("secret text"), "r1", 1)
    assert response.status_code == HTTP_ERRORS[ErrorCode.INTERNAL].status
    assert b"secret" not in bytes(response.body)
