"""The certificate both ports show, and the authority whose client certificates they ask for. Any thread."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import FailedPreconditionError, InvalidArgumentError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files' contents, in PEM.

    Attributes:
        cert: The server's certificate and those between it and its authority.
        key: Its private key.
        client_ca: Authorities of client certificates; None asks for none.
    """

    cert: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """What an operator can set about TLS; without files both ports speak plain text.

    Attributes:
        cert_file: The server's certificate, and those between it and its authority, in PEM.
        key_file: Its private key in PEM, without a password.
        client_ca_file: Authorities in PEM; with it, only callers with a certificate of theirs are let in.

    Raises:
        InvalidArgumentError: If there is a certificate without a key, or the other way round, or authorities alone.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what would be less safe than it looks."""
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidArgumentError("tls.cert_file and tls.key_file must be given together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise InvalidArgumentError("tls.client_ca_file needs tls.cert_file and tls.key_file")

    @property
    def is_on(self) -> bool:
        """Whether the ports speak TLS."""
        return self.cert_file is not None

    def context(self) -> ssl.SSLContext:
        """Return the context of a server; TLS 1.2 at least.

        Raises:
            FailedPreconditionError: If a file cannot be read, or the certificate and the key do not belong together.
        """
        assert self.cert_file is not None
        assert self.key_file is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # A key with a password fails by this one, where the library would ask for it on the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except OSError as error:
            raise FailedPreconditionError(
                f"the TLS certificate {self.cert_file} and its key {self.key_file} cannot be used: {_reason(error)}"
            ) from error
        if self.client_ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca_file)
            except OSError as error:
                raise FailedPreconditionError(
                    f"the TLS authorities {self.client_ca_file} cannot be used: {_reason(error)}"
                ) from error
        return context

    def read(self) -> TlsFiles:
        """Return the files' contents.

        Raises:
            FailedPreconditionError: As :meth:`context` does.
        """
        self.context()
        assert self.cert_file is not None
        assert self.key_file is not None
        client_ca = None if self.client_ca_file is None else self.client_ca_file.read_bytes()
        return TlsFiles(self.cert_file.read_bytes(), self.key_file.read_bytes(), client_ca)


PLAIN_TEXT = TlsConfig()
"""No TLS."""


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not valid PEM").replace("_", " ").lower()
    return error.strerror or type(error).__name__
