"""HTTPS: files that cannot serve are told before anything starts; those that can are what clients see."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from minisgl.server.args import parse_arguments
from minisgl.server.config import ServerConfig, ShellConfig
from minisgl.server.shell import Chat
from minisgl.server.tls import Tls, check
from minisgl.utils.errors import UserError
from support.api_server import MODEL, api_server
from support.certificates import PASSWORD, Certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def server_config(*options: str) -> ServerConfig:
    return parse_arguments(["--model", "m", "--device", "cpu", *options], {}).server


def error_of(*options: str) -> str:
    with pytest.raises(UserError) as caught:
        server_config(*options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_options_become_the_servers_files(files: Certificates) -> None:
    assert (server_config().tls, server_config().scheme) == (None, "http")
    options = ("--ssl-certfile", files.server, "--ssl-keyfile", files.encrypted_key)
    config = server_config(*options, "--ssl-keyfile-password", PASSWORD, "--ssl-ca-certs", files.ca)
    assert config.scheme == "https"
    assert config.tls == Tls(
        certfile=files.server, keyfile=files.encrypted_key, password=PASSWORD, ca_certs=files.ca
    )


def test_files_that_cannot_serve_are_named(files: Certificates, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no PEM\n")
    certfile, keyfile = ("--ssl-certfile", files.server), ("--ssl-keyfile", files.server_key)
    cases = [
        (certfile, "--ssl-certfile needs --ssl-certfile and --ssl-keyfile, both"),
        (keyfile, "--ssl-keyfile needs --ssl-certfile and --ssl-keyfile, both"),
        (("--ssl-ca-certs", files.ca), "--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile, both"),
        (("--ssl-certfile", "/no/file", *keyfile), "--ssl-certfile /no/file: no such file or directory"),
        ((*certfile, "--ssl-keyfile", str(tmp_path)), f"--ssl-keyfile {tmp_path}: is a directory"),
        (("--ssl-certfile", str(nonsense), *keyfile), f"--ssl-certfile {nonsense}: holds no certificate in PEM"),
        ((*certfile, "--ssl-keyfile", str(nonsense)), f"--ssl-keyfile {nonsense}: holds no private key in PEM"),
        ((*certfile, "--ssl-keyfile", files.client_key), "the key is not the certificate's"),
        ((*certfile, "--ssl-keyfile", files.encrypted_key), "is encrypted; give --ssl-keyfile-password"),
        (
            (*certfile, "--ssl-keyfile", files.encrypted_key, "--ssl-keyfile-password", "x"),
            "has another password",
        ),
        (
            (*certfile, *keyfile, "--ssl-ca-certs", str(nonsense)),
            f"--ssl-ca-certs {nonsense}: holds no certificate",
        ),
        ((*certfile, *keyfile, "--ssl-ca-certs", files.ca, "--shell"), "--shell has none"),
    ]
    for options, expected in cases:
        assert expected in error_of(*options), options


def test_a_server_over_https(files: Certificates, capsys: pytest.CaptureFixture[str]) -> None:
    tls = Tls(certfile=files.server, keyfile=files.encrypted_key, password=PASSWORD)
    check(tls)
    with api_server(tls=tls) as server:
        answer = server.chat("Par|is")
        assert answer.url.scheme == "https" and answer.json()["choices"][0]["message"]["content"] == "Paris"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/live")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://127.0.0.1:{server.port}/live")
        assert server.http.get("/live").status_code == 200

        # The shell knows the certificate, whatever name it has, and no other one.
        chat = Chat(
            ShellConfig(host="127.0.0.1", port=server.port, api_key=None, certfile=files.server, model=MODEL)
        )
        assert chat._wait_ready()
        chat._handle("Hel|lo")
        assert "Hello" in capsys.readouterr().out
        other = ShellConfig(host="127.0.0.1", port=server.port, api_key=None, certfile=files.client, model=MODEL)
        assert not Chat(other)._wait_ready()
        assert "certificate is not valid" in capsys.readouterr().err


def test_clients_can_be_asked_for_a_certificate(files: Certificates) -> None:
    tls = Tls(certfile=files.server, keyfile=files.server_key, ca_certs=files.ca)
    with api_server(tls=tls) as server:
        assert server.chat("Par|is").status_code == 200  # the tests' own client shows one
        bare = ssl.create_default_context(cafile=files.ca)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://127.0.0.1:{server.port}/live", verify=bare)
