"""The command line's way to a running server: one connection, one kind of error, repeats only where they are safe.

Every change carries an idempotency key of its own, so that sending it again after a lost answer changes nothing twice.
Knows paths and JSON, neither tables nor any command. One thread.
"""

import http
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self

import httpx
import typer

from server.cli.errors import fail
from server.core.errors import ErrorCode

Document = dict[str, object]

_WAITS_S = (0.5, 1.0, 2.0, 4.0)
_MAX_WAIT_S = 30.0
# A server checks an upload, runs it and may have to fetch it from far before it answers.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=900.0)
_HOW_TO_GET_A_KEY = "give a key by MEDLEY_KEY or --key-file; `medley keys create` makes one"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server is and who calls.

    Attributes:
        url: ``http://`` or ``https://``, host and port.
        key: API key; empty for none.
        ca_file: Authority to trust instead of the system's, or None.
        client_cert: Certificate (PEM) for a server that wants one, or None.
        client_key: Its private key where it is not in the same file, or None.
    """

    url: str
    key: str = field(default="", repr=False)
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """What a change carries: JSON, a form of fields and files, or bytes of some kind.

    Attributes:
        json: A JSON value, or None.
        fields: Plain fields of the form.
        files: Files of the form: field, file name, and the open file; sent in pieces.
        content: Bytes, or None.
        content_type: Of what kind they are.
    """

    json: object = None
    fields: Mapping[str, str] | None = None
    files: Sequence[tuple[str, tuple[str, IO[bytes]]]] | None = None
    content: bytes | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending something once.

    Attributes:
        code: ``OK``, the server's error code, or UNAVAILABLE or DEADLINE_EXCEEDED where no answer came.
        document: The answer; empty unless it is OK.
        message: What a failure said.
        retry_after_s: How long the server asks to wait, at most 30; 0 if it does not say.
    """

    code: str
    document: Mapping[str, object] = field(default_factory=dict)
    message: str = ""
    retry_after_s: float = 0.0


class ServerClient:
    """A connection to a running server. Use as ``with``; every failure ends the command by ``typer.Exit``.

    Args:
        options: Where the server is and who calls.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Read the certificates; the connection is made on use."""
        self._url = options.url
        headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
        try:
            self._http = httpx.Client(base_url=options.url, headers=headers, timeout=_TIMEOUT, verify=_trust(options))
        except OSError as error:
            fail(ErrorCode.INVALID_ARGUMENT, f"cannot read the certificates: {error}")
        except httpx.InvalidURL as error:
            fail(ErrorCode.INVALID_ARGUMENT, f"{options.url} is no address ({error}); write http://host:port")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._http.close()

    def read(self, path: str, query: Mapping[str, str] | None = None) -> Document:
        """Return the answer to a GET."""
        return self._document(self._success(self._send("GET", path, query=query)))

    def read_text(self, path: str) -> str:
        """Return the answer to a GET that is text rather than JSON."""
        return self._success(self._send("GET", path)).text

    def ask(self, path: str, body: Mapping[str, object]) -> Document:
        """Return the answer to a POST that changes nothing."""
        return self._document(self._success(self._send("POST", path, Body(json=body))))

    def attempt(self, path: str, body: Mapping[str, object]) -> Attempt:
        """Return what came of a POST that changes nothing, sent once. Any number of threads may call at once."""
        outcome = self._send("POST", path, Body(json=body))
        if isinstance(outcome, httpx.HTTPError):
            return Attempt(_lost_code(outcome), message=f"no answer from {self._url}: {_reason(outcome)}")
        if not outcome.is_success:
            code, message = _said(outcome)
            return Attempt(code, message=message, retry_after_s=_retry_after_s(outcome))
        return Attempt("OK", self._document(outcome))

    def change(
        self, method: str, path: str, body: Body | None = None, query: Mapping[str, str] | None = None
    ) -> Document:
        """Return the answer to a change; while none comes, it is sent again a few times under its idempotency key."""
        headers = {"idempotency-key": uuid.uuid4().hex}
        outcome = self._send(method, path, body, query, headers)
        for wait_s in _WAITS_S:
            if not _may_pass(outcome):
                break
            wait_s = max(wait_s, _retry_after_s(outcome))  # noqa: PLW2901
            typer.echo(f"medley: no answer from {self._url}, trying again in {wait_s:g} s", err=True)
            time.sleep(wait_s)
            outcome = self._send(method, path, body, query, headers)
        return self._document(self._success(outcome))

    def _send(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response | httpx.HTTPError:
        body = body or Body()
        if body.content_type:
            headers = {**(headers or {}), "content-type": body.content_type}
        try:
            return self._http.request(
                method,
                path,
                params=query,
                headers=headers,
                json=body.json,
                data=body.fields,
                files=body.files,
                content=body.content,
            )
        except httpx.HTTPError as error:
            return error

    def _success(self, outcome: httpx.Response | httpx.HTTPError) -> httpx.Response:
        if isinstance(outcome, httpx.HTTPError):
            fail(_lost_code(outcome), f"no answer from {self._url}: {_reason(outcome)} ({self._way_out(outcome)})")
        if not outcome.is_success:
            _refuse(outcome)
        return outcome

    def _document(self, answer: httpx.Response) -> Document:
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            fail(ErrorCode.INTERNAL, f"{self._url} does not answer as a Medley server does; is --server right?")
        return document

    def _way_out(self, error: httpx.HTTPError) -> str:
        if isinstance(error, httpx.ReadTimeout):
            return "it may still be at work; look with `medley adapters list`"
        tls_problem = _tls_problem(error)
        if isinstance(tls_problem, ssl.SSLCertVerificationError):
            return "--ca-file names the authority of its certificate"
        # A server that wants a certificate may hang up after the handshake, without a word.
        hung_up = isinstance(error, httpx.ReadError | httpx.RemoteProtocolError)
        if self._url.startswith("https://") and (tls_problem is not None or hung_up):
            return "--client-cert gives a certificate it may ask for; http:// is for servers without TLS"
        return "is `medley serve` running there? --server takes http://host:port, or https:// with TLS"


def _trust(options: ServerOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.ca_file)
    if options.client_cert is not None:
        context.load_cert_chain(options.client_cert, options.client_key)
    return context


def _refuse(answer: httpx.Response) -> NoReturn:
    """End the command with what the server said.

    Raises:
        typer.Exit: Always.
    """
    code, message = _said(answer)
    next_step = _HOW_TO_GET_A_KEY if code == ErrorCode.UNAUTHENTICATED else ""
    if "retry-after" in answer.headers:
        next_step = f"try again in {_retry_after_s(answer):g} s"
    fail(code, f"{message} ({next_step})" if next_step else message)


def _said(answer: httpx.Response) -> tuple[str, str]:
    """Return the code and the message of a refusal."""
    try:
        error = answer.json()["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, LookupError, TypeError):
        said_nothing = f"HTTP {answer.status_code} from {answer.url.host}, which says no more; is --server right?"
        return ErrorCode.INTERNAL, said_nothing


def _lost_code(error: httpx.HTTPError) -> ErrorCode:
    return ErrorCode.DEADLINE_EXCEEDED if isinstance(error, httpx.ReadTimeout) else ErrorCode.UNAVAILABLE


def _may_pass(outcome: httpx.Response | httpx.HTTPError) -> bool:
    """Return whether the same request may have an answer a little later."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
    lost = httpx.ConnectTimeout | httpx.NetworkError | httpx.RemoteProtocolError
    return isinstance(outcome, lost) and _tls_problem(outcome) is None


def _retry_after_s(outcome: httpx.Response | httpx.HTTPError) -> float:
    asked = outcome.headers.get("retry-after", "") if isinstance(outcome, httpx.Response) else ""
    return min(float(asked), _MAX_WAIT_S) if asked.isdecimal() else 0.0


def _reason(error: httpx.HTTPError) -> str:
    return str(_tls_problem(error) or error) or type(error).__name__


def _tls_problem(error: BaseException) -> ssl.SSLError | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause
