"""What the Helm chart's manifests say: of secrets, probes, jobs, scaling, networks, builds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from eca_service.grpc_server import GRACE_S
from eca_service.settings import PREFIX, Settings

from tests.deploy.chart import ALL, CHART, CPU, FOREIGN, KSERVE, KUBERNETES, gateway_container, manifests
from tests.deploy.observed import METRIC, PROMETHEUS, metrics_asked_for, promtool, rules
from tests.deploy.stack import versions

POD_MAKERS = {"Deployment", "Job"}


def test_images_may_come_from_anywhere_and_quantities_in_any_notation() -> None:
    """As Kubernetes takes them: a registry with a port, a tag with its digest, an exponent, petabytes."""
    for image in ("registry.example:5000/eca/gateway:1", f"eca/gateway:1@sha256:{64 * 'a'}", f"g@sha256:{64 * 'a'}"):
        assert gateway_container({"gateway": {"image": image}})["image"] == image
    found = manifests({"models": {"size": "1Pi"}, "gateway": {"resources": {"limits": {"memory": "2e9"}}}})
    for (kind, _), document in found.items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(document, KUBERNETES[0], strict=True)


def test_no_name_is_too_long() -> None:
    """Helm takes releases of 53 characters, and Kubernetes has 63 for a service and for a job."""
    for release in (53 * "a", f"{48 * 'a'}-serv", f"{40 * 'a'}-eca-serve"):
        names = [name for _, name in manifests(ALL, release)]
        assert max(map(len, names)) <= 63
        assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) for name in names), names
        assert len({name for name in names if name.endswith(("-gateway", "-triton"))}) == 2


def test_the_notes_command_is_one_that_works() -> None:
    for values, command in (({}, "curl --data-binary @photo.jpg"), (ALL, "curl -k -H 'X-API-Key: KEY' --data")):
        with helm_python.Chart.load(CHART) as chart:
            notes = chart.render(values, name="demo")["eca-serve/templates/NOTES.txt"]
        assert command in notes
        assert ("https://127.0.0.1:8080/v1" in notes) == (values is ALL)


def test_cores_may_be_a_number() -> None:
    """As `--set` gives it; it stays one that Kubernetes takes."""
    values: dict[str, Any] = {"gateway": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 2.5}}}}
    found = manifests(values)["Deployment", "demo-eca-serve-gateway"]
    kubernetes_validate.validate(found, KUBERNETES[0], strict=True)
    resources = found["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["cpu"]) == (2, 2.5)


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


@pytest.mark.parametrize("release", ["eca", "eca-serve"])
def test_no_service_s_name_makes_variables_that_look_like_settings(release: str) -> None:
    """Kubernetes gives every pod such variables, as SERVICE_NAME_PORT, and the commands take none they do not know."""
    found = manifests(ALL, release)
    made = {name.upper().replace("-", "_") for kind, name in found if kind == "Service"}
    assert any(name.startswith(PREFIX) for name in made)
    pods = [
        document["spec"]["template"]["spec"] for (kind, _), document in found.items() if kind in {"Deployment", "Job"}
    ]
    _, service = yaml.safe_load_all(KSERVE.read_text())
    assert [pod["enableServiceLinks"] for pod in (*pods, service["spec"]["predictor"])] == [False] * 4


def test_secrets_are_files_and_what_is_not_asked_for_is_off() -> None:
    bare, all_on = gateway_container({}), gateway_container(ALL)
    names = {"ECA_API_KEYS_FILE", "ECA_TLS_CERT", "ECA_TLS_KEY", "ECA_MANAGEMENT_TOKEN_FILE"}
    assert not names & {entry["name"] for entry in bare["env"]}
    files = {entry["name"]: entry["value"] for entry in all_on["env"] if entry["name"] in names}
    assert files.keys() == names
    mounted = {mount["mountPath"]: all_on["volumes"][mount["name"]] for mount in all_on["volumeMounts"]}
    for file in files.values():
        assert mounted[str(Path(file).parent)]["secret"]["secretName"] in {"team-keys", "gateway-tls", "operators"}


def test_what_the_chart_sets_cannot_be_set_twice() -> None:
    """Server-side apply refuses a name that is there twice; else the last one would hold, unseen by the chart."""
    may_be = {"ECA_DECODE_THREADS", *ALL["gateway"]["env"]}
    for name in {entry["name"] for entry in gateway_container(ALL)["env"]} - may_be:
        with pytest.raises(helm_python.HelmError, match=name):
            manifests({"gateway": {"env": {name: "1"}}})


def test_autoscaling_takes_a_limit_for_the_request_that_is_not_there() -> None:
    """As Kubernetes does."""
    resources = {"requests": {"cpu": None}, "limits": {"cpu": "2"}}
    assert ("HorizontalPodAutoscaler", "demo-eca-serve-gateway") in manifests({"gateway": {"resources": resources}})


def test_images_of_a_private_registry_are_pulled_by_all_pods() -> None:
    values = {**ALL, "cluster": {"imagePullSecrets": ["registry", "mirror"]}}
    pods = [found["spec"]["template"]["spec"] for (kind, _), found in manifests(values).items() if kind in POD_MAKERS]
    assert [pod["imagePullSecrets"] for pod in pods] == [[{"name": "registry"}, {"name": "mirror"}]] * 3


def test_pods_without_an_ipv4_address_listen_on_their_others() -> None:
    """0.0.0.0 is none of them. Triton's metrics are served by libevhtp, which has its own word for that."""
    values: dict[str, Any] = {"cluster": {"ipv6": True}}
    environment = {entry["name"]: entry.get("value") for entry in gateway_container(values)["env"]}
    assert environment["ECA_HOST"] == "::"
    for given in (values, values | CPU):
        pod = manifests(given)["Deployment", "demo-eca-serve-triton"]["spec"]["template"]["spec"]
        told = {
            *pod["containers"][0].get("args", ()),
            *(f"{one['name']}={one['value']}" for one in pod["containers"][0]["env"]),
        }
        assert "ECA_TRITON_HOST=::" in told
        assert given is not values or {"--grpc-address=[::]", "--metrics-address=ipv6:::"} <= told


def test_an_ingress_leads_to_the_gateways_if_asked_for() -> None:
    assert not [kind for kind, _ in manifests({}) if kind == "Ingress"]
    found = manifests(ALL)
    ingress, service = (found[kind, "demo-eca-serve-gateway"] for kind in ("Ingress", "Service"))
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert (rule["host"], backend["name"]) == ("images.example.org", service["metadata"]["name"])
    assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert ingress["spec"]["tls"] == [{"hosts": ["images.example.org"], "secretName": "images-tls"}]


def test_only_who_may_roll_back_may_write_models() -> None:
    for values, read_only in (({}, True), (ALL, False)):
        container = gateway_container(values)
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "models")
        claim = container["volumes"]["models"]["persistentVolumeClaim"]
        assert (mount["readOnly"], claim["readOnly"]) == (read_only, read_only)
        pod = manifests(values)["Deployment", "demo-eca-serve-triton"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["volumeMounts"][0]["readOnly"]


def test_probes_and_scrapes_follow_tls() -> None:
    for values, scheme in (({}, "HTTP"), (ALL, "HTTPS")):
        container = gateway_container(values)
        probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
        assert [probe["scheme"] for probe in probes] == [scheme] * 3
    endpoint = manifests(ALL)["ServiceMonitor", "demo-eca-serve"]["spec"]["endpoints"][0]
    assert (endpoint["port"], endpoint["scheme"]) == ("http", "https")
    assert endpoint["authorization"] == {"credentials": {"name": "scrapes", "key": "key"}}


def test_jobs_are_called_as_the_rules_know_them() -> None:
    """By names that no other team's jobs have, in the chart as in the compose file's Prometheus."""
    endpoints = manifests(ALL)["ServiceMonitor", "demo-eca-serve"]["spec"]["endpoints"]
    relabelled = {
        rule["replacement"] for one in endpoints for rule in one["relabelings"] if rule["targetLabel"] == "job"
    }
    scraped = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    asked = {job for query in rules("alert").values() for job in re.findall(r'job="([^"]+)"', query)}
    assert relabelled == {"eca-gateway", "eca-triton"}
    assert scraped == asked == relabelled | {"eca-balancer"}


def test_whether_targets_are_missing_is_asked_of_the_release_s_own_namespace() -> None:
    groups = manifests(ALL)["PrometheusRule", "demo-eca-serve"]["spec"]["groups"]
    found = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}
    own = 'up{namespace="vision",job="eca-gateway"}'
    assert found["EcaGatewayDown"] == f"{own} == 0 or absent({own})"
    assert not [expr for expr in found.values() if "up{job=" in expr]


def test_pods_are_probed_spread_and_few_are_disrupted_at_once() -> None:
    found = manifests({})
    for part in ("gateway", "triton"):
        name = f"demo-eca-serve-{part}"
        pod = found["Deployment", name]["spec"]["template"]["spec"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= pod["containers"][0].keys()
        keys = [constraint["topologyKey"] for constraint in pod["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        assert found["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    "own", [{}, {"drainDelayMs": 60_000, "env": {"ECA_GRACE_MS": "90000"}}], ids=["default", "own"]
)
def test_a_gateway_stays_until_nobody_sends_any_more(own: dict[str, Any]) -> None:
    pod = manifests({"gateway": own})["Deployment", "demo-eca-serve-gateway"]["spec"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    grace_ms = int(environment.get("ECA_GRACE_MS", Settings.model_fields["grace_ms"].default))
    ending_s = (int(environment["ECA_DRAIN_DELAY_MS"]) + grace_ms) / 1000 + GRACE_S
    assert ending_s < pod["terminationGracePeriodSeconds"]
    probe = pod["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < int(environment["ECA_DRAIN_DELAY_MS"]) / 1000


def test_gateways_scale_by_cores_and_tritons_by_queue_and_predicted_wait(tmp_path: Path) -> None:
    found = manifests(ALL)
    (metric,) = found["HorizontalPodAutoscaler", "demo-eca-serve-gateway"]["spec"]["metrics"]
    assert metric["resource"]["name"] == "cpu"
    triggers = found["ScaledObject", "demo-eca-serve-triton"]["spec"]["triggers"]
    queries = [" ".join(trigger["metadata"]["query"].split()) for trigger in triggers]
    assert queries[0] == 'sum(eca_queue_depth{namespace="vision"})'
    assert queries[1].startswith(queries[0] + " / ")
    lines = [f"      - {{record: r{number}, expr: {json.dumps(query)}}}" for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text("groups:\n  - name: g\n    rules:\n" + "\n".join(lines) + "\n")
    promtool("check", "rules", tmp_path / "rules.yml")
    assert not set(METRIC.findall(" ".join(queries))) - metrics_asked_for()
    for kind, absent in (("hpa", {"ScaledObject"}), ("none", {"ScaledObject", "HorizontalPodAutoscaler"})):
        kinds = {kind for kind, _ in manifests({"autoscaling": {"kind": kind}})}
        assert not kinds & absent


def test_only_gateways_reach_triton() -> None:
    spec = manifests({})["NetworkPolicy", "demo-eca-serve-triton"]["spec"]
    grpc, metrics = spec["ingress"]
    selector = grpc["from"][0]["podSelector"]["matchLabels"]
    assert selector["app.kubernetes.io/component"] == "gateway"
    assert grpc["ports"] == [{"port": 8001, "protocol": "TCP"}]
    assert "namespaceSelector" in metrics["from"][0]
    assert spec["egress"] == []
    ports = [
        rule["ports"][0]["port"] for rule in manifests(ALL)["NetworkPolicy", "demo-eca-serve-gateway"]["spec"]["egress"]
    ]
    assert ports == [8001, 53, 4317]


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


def test_triton_and_gateways_wait_for_the_first_model() -> None:
    """The build may take minutes: a Triton that ends without a repository would be started again long after it."""
    found = manifests(ALL)
    for part in ("gateway", "triton"):
        pod = found["Deployment", f"demo-eca-serve-{part}"]["spec"]["template"]["spec"]
        (first,) = pod["initContainers"]
        assert first["image"] == pod["containers"][0]["image"]
        assert "until ls /models/repository/*/config.pbtxt" in first["command"][-1]


def test_each_triton_has_a_gpu_and_none_on_cpus() -> None:
    for values, limit in (({}, 1), (CPU, None)):
        pod = manifests(values)["Deployment", "demo-eca-serve-triton"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == limit


def test_an_engine_s_threads_are_told_to_tritons_and_gateways() -> None:
    """On a node of many cores each engine took all of them, whatever its pod asked for."""
    on_cpu = CPU["triton"] | {"threads": 3}
    for values, told in ((CPU | {"triton": on_cpu}, "3"), (CPU, None), ({"triton": {"threads": 3}}, None)):
        found = manifests(values)
        for part in ("gateway", "triton"):
            pod = found["Deployment", f"demo-eca-serve-{part}"]["spec"]["template"]["spec"]
            environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0].get("env", [])}
            assert environment.get("ECA_TRITON_THREADS") == told, (part, values)


def test_a_gateway_decodes_on_the_cores_that_it_asks_for() -> None:
    """Of a node's 48 cores each decoded small PNGs of nine million pixels: 2.4 GB, where the limit is 2 GiB."""
    asked: dict[str, Any] = {"valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}
    for gateway, told in (
        ({}, asked),
        ({"env": {"ECA_DECODE_THREADS": "6"}}, {"value": "6"}),
        ({"resources": {"requests": {"cpu": None}}}, None),
    ):
        entries = gateway_container({"gateway": gateway, "autoscaling": {"kind": "none"}})["env"]
        found = [entry for entry in entries if entry["name"] == "ECA_DECODE_THREADS"]
        assert found == ([] if told is None else [{"name": "ECA_DECODE_THREADS", **told}])
    runtime, _ = yaml.safe_load_all(KSERVE.read_text())
    assert {"name": "ECA_DECODE_THREADS", **asked} in runtime["spec"]["containers"][0]["env"]


def test_another_pod_is_another_build_job() -> None:
    """A Job's pod cannot be changed: under one name `helm upgrade` failed, of nodes and volumes too."""
    build: dict[str, Any] = {"build": {"enabled": True, "checkpointsClaim": "c"}}
    cases: tuple[dict[str, Any], ...] = (
        build,
        {"build": build["build"] | {"target": "onnx"}},
        build | {"triton": {"nodeSelector": {"gpu": "h200"}}},
        build | {"triton": {"tolerations": []}},
        build | {"models": {"existingClaim": "mine"}},
        build | {"gateway": {"replicas": 3}},  # none of its business
    )
    jobs = [next(job for (kind, _), job in manifests(values).items() if kind == "Job") for values in cases]
    pods = {job["metadata"]["name"]: job["spec"]["template"] for job in jobs}
    assert len(pods) == len(cases) - 1
    assert [pods[job["metadata"]["name"]] for job in jobs] == [job["spec"]["template"] for job in jobs]
    assert not [label for label in jobs[0]["spec"]["template"]["metadata"]["labels"] if "version" in label]


def test_the_build_job_has_its_options() -> None:
    job = next(document for (kind, _), document in manifests(ALL).items() if kind == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    options = {entry["name"]: entry["value"] for entry in container["env"]}
    assert options == {"ECA_TARGET": "tensorrt", "ECA_PRECISION": "fp16"}


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
