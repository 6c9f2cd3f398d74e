"""The Helm chart, linted and rendered by Helm itself, its manifests held to the schemas of the versions supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.deploy.observed import rules
from tests.deploy.stack import ROOT, versions

CHART = ROOT / "deploy" / "helm" / "eca-serve"
KSERVE = ROOT / "deploy" / "kserve" / "runtime.yaml"
# the kinds of operators, whose schemas no package has
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime", "InferenceService"}
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")
ALL = {
    "build": {"enabled": True, "checkpointsClaim": "checkpoints"},
    "autoscaling": {"kind": "keda"},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "gateway": {"env": {"ECA_DEADLINE_MS": "2000"}},
}
CPU = {"triton": {"image": "eca-serve/triton-cpu:0.1.0", "gpus": 0}, "models": {"existingClaim": "mine"}}
CASES: dict[str, dict[str, Any]] = {"default": {}, "all": ALL, "cpu": CPU, "bare": {
    "autoscaling": {"kind": "none"}, "networkPolicy": {"enabled": False}
}}  # fmt: skip


def manifests(values: dict[str, Any], release: str = "demo") -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes of `values`, by kind and name."""
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values, name=release, namespace="vision")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    documents = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case: str) -> None:
    report = helm_python.lint(CHART, CASES[case], strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert report["errors"] in (None, [])


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid(case: str, version: str) -> None:
    found = manifests(CASES[case])
    for (kind, _), document in found.items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(document, version, strict=True)
    assert len(found) >= 7


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gateway": {"replica": 3}}, "replica"),
        ({"gateway": {"image": "eca-serve/gateway"}}, "image"),
        ({"gateway": {"env": {"PATH": "/"}}}, "PATH"),
        ({"build": {"enabled": True}}, "checkpointsClaim"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"models": {"size": "twenty"}}, "size"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError, match=named):
        chart.render(values, name="demo")


def test_every_value_is_in_the_schema_and_explained() -> None:
    with helm_python.Chart.load(CHART) as chart:
        values, schema = chart.values, chart.schema
    assert schema is not None
    assert values.keys() == schema["properties"].keys() - {"global"}
    for part, given in values.items():
        assert given.keys() == schema["properties"][part]["properties"].keys(), part


def test_all_pods_are_locked_down() -> None:
    for (kind, name), document in manifests(ALL).items():
        if kind not in {"Deployment", "Job"}:
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["automountServiceAccountToken"] is False, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["readOnlyRootFilesystem"], name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_selectors_find_their_pods_and_nobody_else_s() -> None:
    found = manifests(ALL)
    pods = {
        name: document["spec"]["template"]["metadata"]["labels"]
        for (kind, name), document in found.items()
        if kind in {"Deployment", "Job"}
    }
    for (kind, name), document in found.items():
        selector = document["spec"].get("selector")
        if kind in {"Service", "PodDisruptionBudget"}:
            wanted = selector.get("matchLabels", selector)
            assert [pod for pod, labels in pods.items() if wanted.items() <= labels.items()] == [name]


def test_gateways_go_round_all_tritons() -> None:
    found = manifests({})
    assert found["Service", "demo-eca-serve-triton"]["spec"]["clusterIP"] == "None"
    container = found["Deployment", "demo-eca-serve-gateway"]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "ECA_TRITON_URL", "value": "demo-eca-serve-triton:8001"} in container["env"]


def test_each_triton_has_a_gpu_and_none_on_cpus() -> None:
    for values, limit in (({}, 1), (CPU, None)):
        pod = manifests(values)["Deployment", "demo-eca-serve-triton"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == limit


def test_other_values_make_another_build_job() -> None:
    names = {
        name
        for target in ("onnx", "tensorrt")
        for kind, name in manifests({"build": {"enabled": True, "checkpointsClaim": "c", "target": target}})
        if kind == "Job"
    }
    assert len(names) == 2


def test_the_rules_are_in_the_chart() -> None:
    groups = manifests(ALL)["PrometheusRule", "demo-eca-serve"]["spec"]["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert alerts == rules("alert").keys()


def test_images_are_those_of_the_one_place() -> None:
    chosen = versions()
    own, release = chosen["ECA_VERSION"], chosen["NVIDIA_RELEASE"]
    with helm_python.Chart.load(CHART) as chart:
        values, metadata = chart.values, chart.metadata
    assert metadata["appVersion"] == own
    assert values["gateway"]["image"] == f"eca-serve/gateway:{own}"
    assert values["build"]["image"] == f"eca-serve/build:{own}-{release}"
    assert values["triton"]["image"] == f"nvcr.io/nvidia/tritonserver:{release}-py3"
    for line in Path(KSERVE).read_text().splitlines():
        if "image:" in line:
            assert line.endswith((f"gateway:{own}", f"tritonserver:{release}-py3"))


def test_kserve_s_pod_is_valid() -> None:
    runtime, service = yaml.safe_load_all(KSERVE.read_text())
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)
    assert runtime["spec"]["containers"][0]["name"] == "kserve-container"
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
