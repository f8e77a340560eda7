"""Certificates for tests, made by the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PASSWORD = "open sesame"


class Certificates:
    """An authority, and a server's and a client's certificate that it signed; each in PEM."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the `openssl` command, which makes certificates, is not installed")
        self._directory = directory
        self.ca = self._path("ca.pem")
        self._ca_key = self._path("ca.key")
        self._openssl(*_request("authority", self._ca_key), "-x509", "-days", "2", "-out", self.ca)
        self.server, self.server_key = self._signed("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.client, self.client_key = self._signed("client", "extendedKeyUsage=clientAuth")
        self.encrypted_key = self._path("encrypted.key")
        encrypt = ("pkcs8", "-topk8", "-in", self.server_key, "-passout", f"pass:{PASSWORD}")
        self._openssl(*encrypt, "-out", self.encrypted_key)

    def _signed(self, name: str, extension: str) -> tuple[str, str]:
        certificate, key, request = (self._path(f"{name}.{end}") for end in ("pem", "key", "csr"))
        self._openssl(*_request(name, key), "-addext", extension, "-out", request)
        signing = ("-CA", self.ca, "-CAkey", self._ca_key, "-days", "2", "-copy_extensions", "copy")
        self._openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        return certificate, key

    def _path(self, name: str) -> str:
        return str(self._directory / name)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _request(name: str, key: str) -> tuple[str, ...]:
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
    return ("req", *new_key, "-subj", f"/CN={name}")
