"""Dashboard, alerts and monitors: every query names a metric that the worker or the operator emits."""

from __future__ import annotations

import json
import re

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from minisgl.server.metrics import Metrics
from minisgl_operator.handlers import Metrics as OperatorMetrics
from support.helm import MATRIX, MONITORING, of_kind, one, render

TARGET_LABELS = {"namespace", "pod"}
"""What Prometheus itself adds to each sample of a pod."""

_NOT_METRICS = {"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"}


def emitted() -> dict[str, set[str]]:
    """The labels of every sample that a worker or the operator has, by its name."""
    worker = Metrics("model")
    worker.started({"load": 1.0})
    operator = OperatorMetrics()
    operator.reconciles.labels("ok").inc()
    operator.services.labels("true").set(1)
    samples: dict[str, set[str]] = {}
    for page in (worker.page(), generate_latest(operator.registry)):
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def used(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that a query names."""
    query = re.sub(r"^label_values\((.*), (\w+)\)$", r"sum by (\2) (\1)", query)
    labels = {label for inside in re.findall(r"\{(.*?)\}", query) for label in re.findall(r"(\w+)\s*[=!]", inside)}
    query = re.sub(r"\{.*?\}|\[.*?\]", "", query)
    grouping = r"\b(?:by|without|on|ignoring)\s*\((.*?)\)"
    labels |= {label.strip() for inside in re.findall(grouping, query) for label in inside.split(",")}
    query = re.sub(grouping, "", query)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_][\w:]*(?![\w:]|\s*\()", query)
    return set(names) - _NOT_METRICS, labels


def queries() -> dict[str, str]:
    """Every query of the dashboard and the alerts, by where it stands."""
    documents = render({"monitoring": MONITORING})
    (config_map,) = of_kind(documents, "ConfigMap")
    dashboard = json.loads(config_map["data"]["minisglang.json"])
    (rules,) = of_kind(documents, "PrometheusRule")
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    found |= {
        f"variable {variable['name']}": variable["query"]["query"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    found |= {rule["alert"]: rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    return found


def test_used_reads_a_query() -> None:
    query = 'sum by (le, pod) (rate(a:b_bucket{x="1",y!~"z"}[5m])) / on (pod) avg(c_total) > 0.5'
    assert used(query) == ({"a:b_bucket", "c_total"}, {"le", "pod", "x", "y"})
    assert used('label_values(a{x="1"}, y)') == ({"a"}, {"x", "y"})


def test_every_query_names_what_is_emitted() -> None:
    samples = emitted()
    found = queries()
    assert len(found) > 30
    for place, query in found.items():
        names, labels = used(query)
        assert names, place
        for name in names:
            assert name in samples, f"{place}: nothing emits {name}"
            assert labels <= samples[name] | TARGET_LABELS, f"{place}: {name} has no such label"


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    beside_the_value = re.compile("_(sum|count|created)$")
    shown = {name for query in queries().values() for name in used(query)[0]}
    assert {name for name in emitted() if not beside_the_value.search(name)} == shown


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    (rules,) = of_kind(render({"monitoring": MONITORING}), "PrometheusRule")
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        for label in re.findall(r"\$labels\.(\w+)", "".join(alert["annotations"].values())):
            assert label in used(alert["expr"])[1]


def test_monitoring_is_off_by_default() -> None:
    kinds = {document["kind"] for document in render({})}
    assert not kinds & {"PodMonitor", "PrometheusRule", "ConfigMap"}


def test_pod_monitors_find_the_pods() -> None:
    documents = render({"monitoring": MONITORING})
    operator, workers = of_kind(documents, "PodMonitor")
    pod = one(documents, "Deployment")["spec"]["template"]
    assert operator["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert operator["spec"]["podMetricsEndpoints"][0]["port"] in {
        port["name"] for port in pod["spec"]["containers"][0]["ports"]
    }
    assert workers["spec"]["selector"]["matchLabels"] == {"serving.minisglang.io/component": "worker"}
    assert workers["spec"]["podMetricsEndpoints"][0]["port"] == "http"
    assert workers["spec"]["namespaceSelector"] == {"any": True}
    namespaced = of_kind(render(MATRIX["monitoring-namespaced"]), "PodMonitor")[1]
    assert namespaced["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}
