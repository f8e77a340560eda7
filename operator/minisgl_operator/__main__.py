"""The command line: `minisgl-operator run | local -f FILE | render -f FILE | crd`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import minisgl_operator
from minisgl_operator.crd import render_crd

# The other commands import what they need when they run: kopf and the Kubernetes client take a second, and neither
# `--help` nor `crd` needs them.
# ruff: noqa: PLC0415

USAGE_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(message)


def fail(message: str) -> NoReturn:
    """End with one line that says what was wrong."""
    print(f"minisgl-operator: error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    try:
        _dispatch(options)
    except KeyboardInterrupt:  # before a command has handlers of its own
        sys.exit(INTERRUPTED)


def _dispatch(options: argparse.Namespace) -> None:
    if options.command == "crd":
        print(render_crd(), end="")
    elif options.command == "render":
        _render(options)
    elif options.command == "local":
        _local(options)
    else:
        _run(options)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minisgl-operator",
        description="Serve language models on Kubernetes: a MiniSGLangService becomes pods that answer.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minisgl-operator {minisgl_operator.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run the operator, against the cluster of the pod or of KUBECONFIG")
    run.add_argument(
        "--watch-namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="serve this namespace alone; may be given again (default: all namespaces)",
    )
    _add_images(run)
    run.add_argument(
        "--operator-namespace", metavar="NAMESPACE", help="where the operator runs, for NetworkPolicies"
    )
    run.add_argument(
        "--health-port", type=_port, default=8080, metavar="PORT", help="GET /healthz (default: 8080)"
    )
    run.add_argument(
        "--metrics-port", type=_port, default=8081, metavar="PORT", help="GET /metrics (default: 8081)"
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    run.add_argument("--log-format", choices=("text", "json"), default="text")

    local = commands.add_parser("local", help="run a service.yaml on this machine, without a cluster")
    _add_file(local)
    local.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1")
    local.add_argument("--port", type=_port, default=8000, metavar="PORT", help="default: 8000")
    local.add_argument(
        "--models",
        type=Path,
        default=Path(".models"),
        metavar="DIR",
        help="where models are and are downloaded to; a volume claim is a directory in it (default: .models)",
    )

    render = commands.add_parser("render", help="print what a service.yaml becomes in a cluster")
    _add_file(render)
    render.add_argument(
        "--namespace", default=None, metavar="NAME", help="where the file names none (default: default)"
    )
    _add_images(render)

    commands.add_parser("crd", help="print the CustomResourceDefinition")
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="a service.yaml")


def _add_images(parser: argparse.ArgumentParser) -> None:
    version = minisgl_operator.__version__
    repository = "ghcr.io/minisglang/worker"
    parser.add_argument(
        "--worker-image",
        default=f"{repository}:{version}",
        metavar="IMAGE",
        help="for engine.device cuda (default: %(default)s)",
    )
    parser.add_argument(
        "--cpu-worker-image",
        default=f"{repository}:{version}-cpu",
        metavar="IMAGE",
        help="for engine.device cpu (default: %(default)s)",
    )
    parser.add_argument("--worker-pull-policy", choices=("Always", "IfNotPresent", "Never"), default=None)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, not {text!r}")
    return int(text)


def _render(options: argparse.Namespace) -> None:
    import yaml

    from minisgl_operator import api
    from minisgl_operator.build.identity import Identity
    from minisgl_operator.build.image import Defaults
    from minisgl_operator.build.render import children
    from minisgl_operator.validate import InvalidFile, InvalidResource, load_service, validate

    try:
        service = validate(load_service(options.file).service)
    except InvalidFile as error:
        fail(str(error))
    except InvalidResource as error:
        fail("; ".join(error.problems))

    metadata = service["metadata"]
    namespace = options.namespace or metadata.get("namespace") or "default"
    identity = Identity(metadata["name"], namespace, metadata.get("uid", ""))
    defaults = Defaults(options.worker_image, options.cpu_worker_image, options.worker_pull_policy)
    found = children(identity, api.Spec.model_validate(service["spec"]), defaults)
    print(yaml.safe_dump_all(found, sort_keys=False), end="")


def _local(options: argparse.Namespace) -> None:
    from minisgl_operator.local import LocalError, run_local

    try:
        status = run_local(options.file, host=options.host, port=options.port, models=options.models)
    except LocalError as error:
        fail(str(error))
    sys.exit(status)


def _run(options: argparse.Namespace) -> None:
    from minisgl_operator.build.image import Defaults
    from minisgl_operator.cluster import ClusterError
    from minisgl_operator.run import run_operator

    defaults = Defaults(
        options.worker_image, options.cpu_worker_image, options.worker_pull_policy, options.operator_namespace
    )
    try:
        run_operator(
            defaults,
            namespaces=options.watch_namespace,
            health_port=options.health_port,
            metrics_port=options.metrics_port,
            log_level=options.log_level,
            log_json=options.log_format == "json",
        )
    except ClusterError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
