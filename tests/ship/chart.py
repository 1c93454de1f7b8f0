"""The chart, rendered offline by Helm's own library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "strucprune"
# The oldest release that the chart admits, one in between, and the newest whose schemas we have.
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")
RELEASE, NAMESPACE = "demo", "pruning"
VALUES = ("default", *sorted(path.name.split("-")[0] for path in (CHART / "ci").iterdir()))
WORKLOADS = ("Deployment", "StatefulSet")

Object = dict[str, Any]


def values_of(name: str) -> dict[str, Any]:
    """The values file of that name in ci/; nothing for "default"."""
    if name == "default":
        return {}
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


def render(values: dict[str, Any], release: str = RELEASE) -> list[Object]:
    """All objects that an installation with these values makes."""
    with Chart.load(CHART) as chart:
        files = chart.render(values, name=release, namespace=NAMESPACE)
    documents = [yaml.safe_load_all(text) for name, text in files.items() if name.endswith(".yaml")]
    return [item for group in documents for item in group if item]


@cache
def rendered(name: str) -> tuple[Object, ...]:
    """As `render`, of a values file. Do not change what it returns."""
    return tuple(render(values_of(name)))


def of_kind(objects: tuple[Object, ...] | list[Object], *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [item for item in objects if item["kind"] in kinds]


@dataclass(frozen=True, slots=True)
class Pod:
    """What a workload makes.

    Attributes:
        name: Of the workload.
        labels: Of the pod.
        spec: Of the pod.
        container: Its only one.
    """

    name: str
    labels: dict[str, str]
    spec: Object
    container: Object

    @property
    def variables(self) -> dict[str, Object]:
        """Environment variables by name."""
        return {entry["name"]: entry for entry in self.container["env"]}


def pods(objects: tuple[Object, ...] | list[Object]) -> Iterator[Pod]:
    """The pods of all workloads."""
    for item in of_kind(objects, *WORKLOADS):
        template = item["spec"]["template"]
        (container,) = template["spec"]["containers"]
        yield Pod(
            item["metadata"]["name"], template["metadata"]["labels"], template["spec"], container
        )


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector (labels and `In` expressions) selects what has these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )
