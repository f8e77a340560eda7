"""kopf's part: watches and indexes. Every event ends in one look at one service.

Only event handlers are used: they write nothing to the objects that they are about, no annotation and no
finalizer, and they see every change, drift of children and of the status included.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import kopf
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from minisgl_operator import api
from minisgl_operator.build.image import Defaults
from minisgl_operator.cluster import CHILD_KINDS, POD, SERVICE_RESOURCE, Cluster, ClusterError, Kind
from minisgl_operator.queue import Key, WorkQueue
from minisgl_operator.reconcile import Reconciler
from minisgl_operator.snapshot import Snapshot

SERVICE_LABEL = f"{api.GROUP}/service"
WORKERS = 8
RESYNC_SECONDS = 60.0
"""How often every service is looked at without an event."""
SILENT_SECONDS = 300.0
"""The operator is unhealthy when it has neither seen an event nor finished a look or a resync for so long."""

AT_REST = ("Suspended", "ScaledToZero")
"""Reasons for which a service is not ready and nobody is missing it."""

Object = dict[str, Any]
log = logging.getLogger(__name__)


class Metrics:
    """Of the operator itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "minisgl_operator_reconcile", "Looks at a service, by result", ["result"], registry=self.registry
        )
        self.seconds = Histogram("minisgl_operator_reconcile_seconds", "Seconds of a look", registry=self.registry)
        self.depth = Gauge("minisgl_operator_queue_depth", "Services that wait for a look", registry=self.registry)
        self.services = Gauge(
            "minisgl_operator_services", "Services, by readiness", ["ready"], registry=self.registry
        )


@dataclass
class Heartbeat:
    at: float

    def beat(self) -> None:
        self.at = time.monotonic()


class Handlers:
    """The handlers of one operator, registered in a registry of its own."""

    def __init__(self, cluster: Cluster, defaults: Defaults, metrics: Metrics) -> None:
        self.registry = kopf.OperatorRegistry()
        self._cluster = cluster
        self._reconciler = Reconciler(cluster, defaults)
        self._metrics = metrics
        self._queue = WorkQueue(self._visit, WORKERS)
        self._indexes: Mapping[str, kopf.Index[Key, Object]] = {}
        self._heartbeat = Heartbeat(time.monotonic())
        self._tasks: list[asyncio.Task[None]] = []
        self._register()

    def _register(self) -> None:
        registry = self.registry
        kopf.on.login(registry=registry)(_login)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        kopf.on.probe(id="heartbeat", errors=kopf.ErrorsMode.PERMANENT, registry=registry)(self._probe)
        for kind in (SERVICE_RESOURCE, POD, *CHILD_KINDS):
            selector = (kind.group, kind.api_version.rpartition("/")[2], kind.plural)
            key = _own_key if kind is SERVICE_RESOURCE else _label_key
            kopf.index(*selector, id=kind.plural, registry=registry)(_indexer(key))
            kopf.on.event(*selector, id=f"see-{kind.plural}", registry=registry)(self._seer(key))

    def _seer(self, key_of: Any) -> Any:
        async def see(body: kopf.Body, **_: Any) -> None:
            self._heartbeat.beat()
            key = key_of(body)
            if key is not None:
                await self._queue.add(key)

        return see

    async def _start(self, settings: kopf.OperatorSettings, **kwargs: Any) -> None:
        configure(settings)
        names = [kind.plural for kind in (SERVICE_RESOURCE, POD, *CHILD_KINDS)]
        self._indexes = {name: kwargs[name] for name in names}
        self._heartbeat.beat()
        self._tasks = [asyncio.create_task(self._queue.run()), asyncio.create_task(self._resync())]

    async def _stop(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _probe(self, **_: Any) -> float:
        silent = time.monotonic() - self._heartbeat.at
        if silent > SILENT_SECONDS or any(task.done() for task in self._tasks):
            raise kopf.PermanentError(f"no event and no reconcile for {silent:.0f} s")
        return round(silent, 1)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                await asyncio.to_thread(self._cluster.version)
                self._heartbeat.beat()
            except ClusterError as error:
                log.warning("the API server does not answer: %s", error)
            for key in list(self._indexes[SERVICE_RESOURCE.plural]):
                await self._queue.add(key)

    async def _visit(self, key: Key) -> float | None:
        snapshot = self._snapshot(key)
        self._count_services()
        started = time.monotonic()
        try:
            again = await asyncio.to_thread(self._reconciler.reconcile, snapshot)
        except ClusterError as error:
            if error.is_about_end:
                return None
            self._metrics.reconciles.labels("error").inc()
            log.warning("%s/%s: %s", *key, error)
            raise
        except Exception:
            self._metrics.reconciles.labels("error").inc()
            log.exception("%s/%s: a defect of the operator", *key)
            raise
        self._metrics.reconciles.labels("ok").inc()
        self._metrics.seconds.observe(time.monotonic() - started)
        self._heartbeat.beat()
        return again

    def _snapshot(self, key: Key) -> Snapshot:
        """A copy, since the look happens in a thread while the indexes go on changing."""
        namespace, name = key

        def found(kind: Kind) -> list[Object]:
            index = self._indexes[kind.plural]
            return list(index[key]) if key in index else []

        services = found(SERVICE_RESOURCE)
        return Snapshot(
            namespace=namespace,
            name=name,
            service=services[0] if services else None,
            children={kind.kind: found(kind) for kind in CHILD_KINDS},
            pods=found(POD),
        )

    def _count_services(self) -> None:
        self._metrics.depth.set(len(self._queue))
        index = self._indexes[SERVICE_RESOURCE.plural]
        for ready, count in count_ready(service for key in index for service in index[key]).items():
            self._metrics.services.labels(ready).set(count)


def count_ready(services: Iterable[Object]) -> dict[str, int]:
    """How many are ready, and how many should be and are not: one that was put to rest is neither."""
    counts = {"true": 0, "false": 0}
    for service in services:
        conditions = (service.get("status") or {}).get("conditions") or ()
        ready = next((item for item in conditions if item["type"] == "Ready"), {"status": "False", "reason": ""})
        if ready["status"] == "True":
            counts["true"] += 1
        elif ready["reason"] not in AT_REST:
            counts["false"] += 1
    return counts


def configure(settings: kopf.OperatorSettings) -> None:
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.watching.inactivity_timeout = 70.0
    settings.watching.connect_timeout = 20.0
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=api.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=api.GROUP)
    for kind in (POD, *CHILD_KINDS):
        version = kind.api_version.rpartition("/")[2]
        settings.watching.label_selectors[kind.group, version, kind.plural] = SERVICE_LABEL


def _login(**kwargs: Any) -> Any:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _indexer(key_of: Any) -> Any:
    def index(body: kopf.Body, **_: Any) -> dict[Key, Object] | None:
        key = key_of(body)
        return None if key is None else {key: _plain(body)}

    return index


def _own_key(body: Mapping[str, Any]) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _label_key(body: Mapping[str, Any]) -> Key | None:
    name = (body["metadata"].get("labels") or {}).get(SERVICE_LABEL)
    return None if name is None else (body["metadata"]["namespace"], name)


def _plain(body: Mapping[str, Any]) -> Object:
    """The object without what nobody reads and everybody would have to keep in memory."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**{name: body[name] for name in body}, "metadata": metadata}
