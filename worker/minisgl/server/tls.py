"""HTTPS: the certificate files, checked before anything starts, and what both ends of a connection need."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from minisgl.utils.errors import UserError


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files in PEM."""

    certfile: str
    """The server's certificate, then those between it and the authority."""
    keyfile: str
    password: str | None = None
    """Of the key, if it is encrypted."""
    ca_certs: str | None = None
    """Authorities one of which must have signed a client's certificate. None: clients need none."""


def check(tls: Tls) -> None:
    """Raises `UserError` when a server cannot use these files, and names the option."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for option, name in (("--ssl-certfile", tls.certfile), ("--ssl-keyfile", tls.keyfile)):
        _check_readable(option, name)
    try:
        # Without a password of ours, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(tls.certfile, tls.keyfile, lambda: tls.password or "")
    except ssl.SSLError as error:
        raise UserError(_explain(error, tls)) from None
    if tls.ca_certs is not None:
        _check_readable("--ssl-ca-certs", tls.ca_certs)
        try:
            context.load_verify_locations(tls.ca_certs)
        except ssl.SSLError:
            raise UserError(f"--ssl-ca-certs {tls.ca_certs}: holds no certificate in PEM") from None


def client_context(certfile: str) -> ssl.SSLContext:
    """For a client on the same machine, which knows the server by its very certificate and not by its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certfile)
    return context


def _explain(error: ssl.SSLError, tls: Tls) -> str:
    files = f"--ssl-certfile {tls.certfile} and --ssl-keyfile {tls.keyfile}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files}: the key is not the certificate's"
    if not _holds(tls.certfile, "CERTIFICATE-----"):
        return f"--ssl-certfile {tls.certfile}: holds no certificate in PEM"
    if not _holds(tls.keyfile, "PRIVATE KEY-----"):
        return f"--ssl-keyfile {tls.keyfile}: holds no private key in PEM"
    if _holds(tls.keyfile, "ENCRYPTED"):
        wrong = "is encrypted; give --ssl-keyfile-password" if tls.password is None else "has another password"
        return f"--ssl-keyfile {tls.keyfile}: the key {wrong}"
    return f"{files}: {error.reason or error}"


def _holds(path: str, text: str) -> bool:
    return text.encode() in Path(path).read_bytes()


def _check_readable(option: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path}: {(error.strerror or str(error)).lower()}") from None
