"""What the Helm chart makes of values, and what the tests of it ask for."""

from __future__ import annotations

from typing import Any

import helm_python
import yaml

from tests.deploy.stack import ROOT

CHART = ROOT / "deploy" / "helm" / "eca-serve"
KSERVE = ROOT / "deploy" / "kserve" / "runtime.yaml"
# the kinds of operators, whose schemas no package has
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime", "InferenceService"}
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")
ALL: dict[str, Any] = {
    "build": {"enabled": True, "checkpointsClaim": "checkpoints", "env": {"ECA_PRECISION": "fp16"}},
    "autoscaling": {"kind": "keda"},
    "networkPolicy": {"egress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}]},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}, "apiKey": "scrapes"},
    "gateway": {
        "env": {"ECA_DEADLINE_MS": "2000", "OTEL_TRACES_SAMPLER": "always_off"},
        "secrets": {"apiKeys": "team-keys", "tls": "gateway-tls", "managementToken": "operators"},
        "ingress": {"enabled": True, "host": "images.example.org", "tlsSecret": "images-tls", "className": "nginx"},
    },
    "cluster": {"imagePullSecrets": ["registry"], "ipv6": True},
}
CPU: dict[str, Any] = {
    "triton": {"image": "eca-serve/triton-cpu:0.1.0", "gpus": 0},
    "models": {"existingClaim": "mine"},
}
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


def gateway_container(values: dict[str, Any]) -> dict[str, Any]:
    """The gateway's, with its pod's volumes by name."""
    pod = manifests(values)["Deployment", "demo-eca-serve-gateway"]["spec"]["template"]["spec"]
    container: dict[str, Any] = pod["containers"][0]
    return {**container, "volumes": {volume["name"]: volume for volume in pod["volumes"]}}
