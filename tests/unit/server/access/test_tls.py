"""The certificate files an operator names."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from server.access.tls import PLAIN_TEXT, TlsConfig
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.settings import load_settings
from tests.fixtures.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_config_without_files_is_plain_text() -> None:
    assert not TlsConfig().is_on
    assert TlsConfig() == PLAIN_TEXT


@pytest.mark.parametrize("field", ["cert_file", "key_file", "client_ca_file"])
def test_config_with_half_of_it_is_refused(field: str) -> None:
    with pytest.raises(InvalidArgumentError):
        TlsConfig(**{field: Path("a")})
    with pytest.raises(InvalidArgumentError):
        load_settings(overrides={"tls": {field: "a"}})


def test_settings_take_the_files_as_text(certificates: Certificates) -> None:
    files = {"cert_file": str(certificates.server.cert), "key_file": str(certificates.server.key)}
    assert load_settings(overrides={"tls": files}).tls == certificates.config(mutual=False)


def test_context_asks_for_client_certificates_only_with_authorities(certificates: Certificates) -> None:
    plain, mutual = certificates.config(mutual=False).context(), certificates.config(mutual=True).context()
    assert (plain.verify_mode, mutual.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)
    assert plain.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert [authority["subject"] for authority in mutual.get_ca_certs()]


def test_read_gives_the_files(certificates: Certificates) -> None:
    assert certificates.config(mutual=False).read().client_ca is None
    files = certificates.config(mutual=True).read()
    assert files.cert == certificates.server.cert.read_bytes()
    assert files.key == certificates.server.key.read_bytes()
    assert files.client_ca == certificates.client_ca.read_bytes()


def test_missing_file_is_told(certificates: Certificates, tmp_path: Path) -> None:
    for config in (
        TlsConfig(tmp_path / "none.pem", certificates.server.key),
        TlsConfig(certificates.server.cert, tmp_path / "none.pem"),
        TlsConfig(certificates.server.cert, certificates.server.key, tmp_path / "none.pem"),
    ):
        with pytest.raises(FailedPreconditionError, match=r"none\.pem.*No such file"):
            config.read()


def test_key_of_another_certificate_is_told(certificates: Certificates) -> None:
    with pytest.raises(FailedPreconditionError, match="mismatch"):
        TlsConfig(certificates.server.cert, certificates.client.key).context()


def test_file_that_is_no_pem_is_told(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("not a certificate")
    for config in (
        TlsConfig(tmp_path / "bad.pem", tmp_path / "bad.pem"),
        TlsConfig(certificates.server.cert, certificates.server.key, tmp_path / "bad.pem"),
    ):
        with pytest.raises(FailedPreconditionError, match=r"bad\.pem.*cannot be used"):
            config.context()


def test_key_with_a_password_is_refused_and_nobody_is_asked(certificates: Certificates, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(certificates.server.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked.key").write_bytes(locked)
    with pytest.raises(FailedPreconditionError):
        TlsConfig(certificates.server.cert, tmp_path / "locked.key").context()
