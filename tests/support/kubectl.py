"""A cluster by kubectl, as a person uses it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from support.waiting import until

Object = dict[str, Any]

LEFT_KINDS = (
    "deployments,replicasets,controllerrevisions,pods,services,serviceaccounts,jobs,poddisruptionbudgets,"
    "networkpolicies,persistentvolumeclaims,minisglangservices"
)


class Kubectl:
    """Commands in one namespace of the cluster that KUBECONFIG names."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        program = shutil.which("kubectl") or "kubectl"
        command = [program, "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *documents: Mapping[str, Any]) -> None:
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str) -> Object | None:
        text = self("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else None

    def items(self, kind: str, selector: str = "") -> list[Object]:
        found: list[Object] = json.loads(self("get", kind, "-o", "json", *(["-l", selector] if selector else [])))[
            "items"
        ]
        return sorted(found, key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))

    def pods(self, service: str) -> list[Object]:
        labels = f"serving.minisglang.io/service={service},serving.minisglang.io/component=worker"
        return self.items("pods", labels)

    def condition(self, service: str, kind: str) -> Object:
        found = self.get("msgl", service) or {}
        for condition in (found.get("status") or {}).get("conditions") or ():
            if condition["type"] == kind:
                return {
                    **condition,
                    "fresh": condition.get("observedGeneration") == found["metadata"]["generation"],
                }
        return {"type": kind, "status": "Unknown", "reason": "", "message": "", "fresh": False}

    def wait(self, service: str, kind: str, status: str, reason: str | None = None, *, seconds: float) -> Object:
        """The condition, once it says so of the newest generation."""

        def reached() -> Object | None:
            found = self.condition(service, kind)
            return (
                found
                if found["fresh"] and found["status"] == status and reason in (None, found["reason"])
                else None
            )

        def state() -> str:
            return self("get", "msgl", service, "-o", "yaml", check=False) + self("get", "pods", "-o", "wide")

        return until(reached, f"{kind}={status} {reason or ''} of {service}", seconds, state)

    def left(self) -> set[str]:
        """What is in the namespace, apart from what every namespace has."""
        return set(self("get", LEFT_KINDS, "-o", "name").split()) - {"serviceaccount/default"}
