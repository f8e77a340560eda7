"""A real etcd and API server of a test's own, and the controllers when asked for: no nodes, so no pod ever runs.

The programs come from the directory KUBEBUILDER_ASSETS, or from PATH. `openssl` makes the key that signs
service-account tokens; the API server makes its own serving certificate.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kubernetes import client

READY_SECONDS = 120.0
"""How long a program may take to be ready: the machine may be busy."""
STOP_SECONDS = 10.0

ADMIN, CONTROLLER_MANAGER = "admin-token", "controller-manager-token"
TOKENS = f"""\
{ADMIN},admin,admin,"system:masters"
{CONTROLLER_MANAGER},system:kube-controller-manager,controller-manager
"""


def find(program: str) -> str | None:
    """The path of a program of Kubernetes, None where it is not there. Without KUBEBUILDER_ASSETS nothing is."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return None
    return shutil.which(program, path=os.pathsep.join([assets, os.environ.get("PATH", "")]))


def available() -> bool:
    return all(find(program) for program in ("etcd", "kube-apiserver"))


@dataclass
class _Process:
    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        if self.popen.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} ended with status {self.popen.returncode}:\n{tail}")


@dataclass
class ControlPlane:
    """One API server with its etcd, listening on this machine alone. `start` makes one, `stop` ends it."""

    directory: Path
    url: str
    _processes: list[_Process] = field(default_factory=list)

    @classmethod
    def start(cls, *, controllers: bool = False) -> Self:
        directory = Path(tempfile.mkdtemp(prefix="envtest-"))
        api_port, etcd_port, peer_port = free_ports(3)
        plane = cls(directory, f"https://127.0.0.1:{api_port}")
        try:
            plane._start_etcd(etcd_port, peer_port)
            plane._start_api_server(api_port, etcd_port)
            if controllers:
                plane.start_controllers()
        except BaseException:
            plane.stop()
            raise
        return plane

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ca_file(self) -> Path:
        return self.directory / "certificates" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """Of the administrator."""
        return self.write_kubeconfig("admin", ADMIN)

    def write_kubeconfig(self, name: str, token: str) -> Path:
        """The kubeconfig of who holds `token`, such as a service account. Written as JSON, which is YAML too."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "envtest",
            "clusters": [{"name": "envtest", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "envtest", "context": {"cluster": "envtest", "user": name}}],
        }
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def api_client(self, token: str = ADMIN) -> client.ApiClient:
        """A client of the administrator's, or of who holds `token`. The caller closes it."""
        configuration = client.Configuration(host=self.url)
        configuration.ssl_ca_cert = str(self.ca_file)
        configuration.api_key = {"authorization": f"Bearer {token}"}
        return client.ApiClient(configuration)

    def start_controllers(self) -> None:
        """Starts kube-controller-manager, with every controller, and waits until it makes objects."""
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.write_kubeconfig('controller-manager', CONTROLLER_MANAGER)}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=true",
            # No kubelet says that a node lives, so nothing may be concluded from its silence.
            "--controllers=*,-node-lifecycle-controller,-pod-garbage-collector-controller,-taint-eviction-controller",
            f"--service-account-private-key-file={self.directory / 'service-account.key'}",
            f"--root-ca-file={self.ca_file}",
        )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_until("the default service account", lambda: self._answers(account))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.popen.terminate()
            try:
                process.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start_etcd(self, port: int, peer_port: int) -> None:
        peer = f"http://127.0.0.1:{peer_port}"
        self._start(
            "etcd",
            "--name=envtest",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls=http://127.0.0.1:{port}",
            f"--advertise-client-urls=http://127.0.0.1:{port}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=envtest={peer}",
        )

    def _start_api_server(self, port: int, etcd_port: int) -> None:
        key, tokens = self.directory / "service-account.key", self.directory / "tokens.csv"
        tokens.write_text(TOKENS)
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self.ca_file.parent}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        )
        wait_until("the API server", lambda: self._answers("/readyz"))

    def _start(self, program: str, *arguments: str) -> None:
        path = find(program)
        if path is None:
            raise FileNotFoundError(f"{program}: neither in KUBEBUILDER_ASSETS nor on PATH")
        log = self.directory / f"{program}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen([path, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self._processes.append(_Process(program, popen, log))

    def get(self, path: str, *, accept: str = "application/json") -> Any:
        """What the API server answers the administrator at `path`, as the media type `accept`."""
        headers = {"Authorization": f"Bearer {ADMIN}", "Accept": accept}
        request = urllib.request.Request(self.url + path, headers=headers)
        context = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            body = response.read()
        return json.loads(body) if body.startswith(b"{") else body.decode()

    def _answers(self, path: str) -> bool:
        """Whether there is something at `path`, and every process is alive to say so."""
        for process in self._processes:
            process.check()
        try:
            return self.ca_file.is_file() and bool(self.get(path))
        except OSError:  # refused, not ready (a status of 500), not there yet (404)
            return False


def wait_until(what: str, true: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Returns once `true()` is. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not there after {seconds:.0f} s")
        time.sleep(0.1)


def free_ports(count: int) -> Sequence[int]:
    """Ports that were free just now: all held at once, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
