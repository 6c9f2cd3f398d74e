"""The Helm chart, linted and rendered by Helm itself, its manifests held to the schemas of the versions supported."""

from __future__ import annotations

from typing import Any

import helm_python
import kubernetes_validate
import pytest

from tests.deploy.chart import CASES, CHART, CPU, FOREIGN, KUBERNETES, manifests


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
        ({"gateway": {"resources": {"requests": {"cpu": -1}}}}, "cpu"),
        ({"gateway": {"image": "registry:5000/eca-serve/gateway"}}, "image"),
        ({"triton": {"resources": {"limits": None}}}, "missing property 'limits'"),
        # each would be a release whose pods never come up, or whose gateways Prometheus does not see
        ({"gateway": {"env": {"ECA_HTTP_PORT": "9000"}}}, "gateway.env: the chart itself sets ECA_HTTP_PORT"),
        ({"gateway": {"env": {"ECA_TRITON_THREADS": "4"}}}, "gateway.env: the chart itself sets ECA_TRITON_THREADS"),
        ({"gateway": {"env": {"ECA_WORKERS": "4"}}}, "gateway.env: the chart itself sets ECA_WORKERS"),
        ({"build": {"env": {"ECA_TARGET": "onnx"}}}, "build.env: the chart itself sets ECA_TARGET"),
        ({"build": {"env": {"ECA_REPOSITORY": "/tmp"}}}, "build.env: the chart itself sets ECA_REPOSITORY"),
        ({"triton": {"gpus": 0}}, "set triton.image to eca-serve/triton-cpu"),
        (CPU | {"build": {"enabled": True, "checkpointsClaim": "c"}}, "set build.target to onnx"),
        ({"autoscaling": {"gateway": {"min": 20}}}, "autoscaling.gateway: min 20 is above max 10"),
        ({"autoscaling": {"kind": "keda", "triton": {"max": 1, "min": 2}}}, "autoscaling.triton: min 2 is above max 1"),
        ({"gateway": {"resources": {"requests": {"cpu": None}}}}, "set gateway.resources.requests.cpu, or"),
        ({"gateway": {"ingress": {"enabled": True}}}, "host"),
        ({"cluster": {"imagePullSecrets": ["Registry"]}}, "imagePullSecrets"),
        ({"monitoring": {"enabled": True}, "gateway": {"env": {"ECA_METRICS": "key"}}}, "set monitoring.apiKey"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError, match=named):
        chart.render(values, name="demo")
