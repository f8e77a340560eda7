"""`minisgl-operator run`: logging, metrics, and kopf in the foreground."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import kopf
from prometheus_client import start_http_server

from minisgl_operator.build.image import Defaults
from minisgl_operator.cluster import Cluster, ClusterError
from minisgl_operator.handlers import Handlers, Metrics

log = logging.getLogger("minisgl_operator")


def run_operator(
    defaults: Defaults,
    *,
    namespaces: Sequence[str],
    health_port: int,
    metrics_port: int,
    log_level: str,
    log_json: bool,
) -> None:
    """Runs until SIGTERM or SIGINT. Raises `ClusterError` when there is no cluster, or a port is in use."""
    configure_logging(log_level, as_json=log_json)
    cluster = Cluster.connect()
    metrics = Metrics()
    try:
        start_http_server(metrics_port, registry=metrics.registry)
    except OSError as error:
        raise ClusterError(0, f"port {metrics_port} for metrics: {error.strerror}") from None
    handlers = Handlers(cluster, defaults, metrics)
    settings = kopf.OperatorSettings()
    # Without the right to list namespaces and CRDs of the whole cluster, kopf must not try.
    settings.scanning.disabled = bool(namespaces)
    log.info("watching %s", ", ".join(namespaces) if namespaces else "all namespaces")
    asyncio.run(
        kopf.operator(
            registry=handlers.registry,
            settings=settings,
            clusterwide=not namespaces,
            namespaces=namespaces,
            standalone=True,
            liveness_endpoint=f"http://0.0.0.0:{health_port}/healthz",
        )
    )


def configure_logging(level: str, *, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname).1s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf tells of every watch that it opens anew, and of handlers that it called.
    logging.getLogger("kopf").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for name in ("kubernetes", "urllib3", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    """One object a line, with the fields that log collectors know."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
