"""Settings come from ECA_ variables, and what is wrong is named."""

from __future__ import annotations

import os
from pathlib import Path

import click
import eca_build.cli
import eca_service.cli
import pytest
from click.testing import CliRunner
from eca_service.gateway import require_files
from eca_service.settings import PREFIX, Settings, SettingsError, load, table

from tests.unit.test_contract import CONTRACT
from tests.unit.test_preflight import publish


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECA_HTPP_PORT", "1")
    with pytest.raises(SettingsError, match=r"ECA_HTPP_PORT is not a setting; [^;]+$"):
        load({})


def test_a_variable_that_kubernetes_makes_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert load({}) == Settings()
    monkeypatch.setenv("ECA_SERVE_PORT", "tcp://10.0.0.7:8080")
    with pytest.raises(SettingsError, match=r"ECA_SERVE_PORT is not a setting.*enableServiceLinks: false"):
        load({})


def _variables(command: click.Command) -> set[str]:
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {str(option.envvar) for option in command.params if option.envvar}
    return own.union(*map(_variables, below))


def test_the_variables_of_the_build_and_of_the_client_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = _variables(eca_build.cli.main) | _variables(eca_service.cli.main)
    assert {"ECA_FRONTEND", "ECA_URL"} <= variables
    for name in variables - {PREFIX + name.upper() for name in Settings.model_fields}:
        monkeypatch.setenv(name, "1")
    assert load({}) == Settings()


def test_out_of_range_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="ECA_HTTP_PORT='70000'"):
        load({"http_port": "70000"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"log_level": "INFO"}, "ECA_LOG_LEVEL='INFO': input should be 'debug', 'info', 'warning' or 'error'"),
        ({"log_format": "xml"}, "ECA_LOG_FORMAT='xml': input should be 'json' or 'text'"),
        ({"page": "yes"}, "ECA_PAGE='yes': input should be 'on' or 'off'"),
        ({"docs": "no"}, "ECA_DOCS='no': input should be 'on', 'key' or 'off'"),
        ({"metrics": "false"}, "ECA_METRICS='false': input should be 'on', 'key' or 'off'"),
        ({"rate_by": "ip"}, "ECA_RATE_BY='ip': input should be 'key' or 'address'"),
    ],
)
def test_a_choice_names_what_there_is_to_choose(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "name", [name for name in Settings.model_fields if name.endswith("_ms")] + ["max_body_bytes", "max_head_bytes"]
)
def test_what_grpc_cannot_count_to_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"ECA_{name.upper()}='{1 << 31}': input should be less than or equal to"):
        load({name: str(1 << 31)})
    assert load({name: "2000000000"})


def test_loopback_is_the_default() -> None:
    assert load({}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate_limit": "5"}, "ECA_RATE_LIMIT counts by key, but ECA_API_KEYS_FILE is not set"),
        ({"rate_limit": "0"}, "ECA_RATE_LIMIT='0'"),
        ({"cors_origins": "https://a.example, *"}, "ECA_CORS_ORIGINS: '\\*' is not an origin"),
        ({"cors_origins": "https://a.example/path"}, "is not an origin"),
        ({"metrics": "maybe"}, "ECA_METRICS='maybe'"),
        ({"tls_key": "key.pem"}, "ECA_TLS_CERT and ECA_TLS_KEY go together"),
        ({"http_port": "9", "grpc_port": "9"}, "ECA_HTTP_PORT and ECA_GRPC_PORT are both 9"),
        ({"triton_url": "triton"}, "ECA_TRITON_URL: 'triton' is not a host and port such as triton:8001"),
        ({"triton_url": "a:1, foo:bar"}, "ECA_TRITON_URL: 'foo:bar' is no"),
        ({"triton_url": "tri..ton:8001"}, "is not a host and port"),
        ({"triton_url": "http://triton:8001"}, "is not a host and port"),
        ({"triton_url": "triton:70000"}, "is not a host and port"),
        ({"triton_url": "::1:8001"}, "is not a host and port"),
        ({"rate_limit": "inf", "rate_by": "address"}, "ECA_RATE_LIMIT='inf': input should be less than or equal to"),
        ({"rate_limit": "1e-320", "rate_by": "address"}, "ECA_RATE_LIMIT='1e-320': input should be greater than"),
        ({"triton_url": ","}, "ECA_TRITON_URL: '' is not a host and port"),
        ({"rate_burst": "5"}, "ECA_RATE_BURST is set, but ECA_RATE_LIMIT is not"),
        (
            {"rate_limit": "1", "rate_by": "address", "rate_burst": "9" * 400},
            "ECA_RATE_BURST='9+': input should be less",
        ),
    ],
)
def test_settings_that_do_not_agree(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(given)


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("empty", ["", " "])
def test_what_is_there_and_empty_is_told(monkeypatch: pytest.MonkeyPatch, name: str, empty: str) -> None:
    """Whatever kind of setting it is: no key would be asked, or all the world be listened to."""
    sentence = f"^{PREFIX}{name.upper()} is empty; give it a value or remove it$"
    with pytest.raises(SettingsError, match=sentence):
        load({name: empty})
    monkeypatch.setenv(PREFIX + name.upper(), empty)
    with pytest.raises(SettingsError, match=sentence):
        load({})


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_the_gateway_and_triton_need_ports_of_their_own(tmp_path: Path, command: str) -> None:
    publish(tmp_path, CONTRACT)
    given = ["--repository", str(tmp_path), "--http-port", "9", "--triton-grpc-port", "9"]
    done = CliRunner().invoke(eca_service.cli.main, [command, *given])
    assert (done.exit_code, "ECA_TRITON_GRPC_PORT=9 is also a port of the gateway" in done.output) == (2, True)


def test_up_takes_no_other_triton(tmp_path: Path) -> None:
    """It would be given no image."""
    publish(tmp_path, CONTRACT)
    done = CliRunner().invoke(
        eca_service.cli.main, ["up", "--repository", str(tmp_path), "--triton-url", "triton:8001"]
    )
    assert (done.exit_code, "or run `eca-serve gateway`" in done.output) == (2, True)


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_a_repository_that_is_not_there_is_told_as_that(tmp_path: Path, command: str) -> None:
    given = [command, "--repository", str(tmp_path / "modles"), "--http-port", "0", "--grpc-port", "0"]
    done = CliRunner().invoke(eca_service.cli.main, given)
    assert (done.exit_code, "modles does not exist" in done.output) == (2, True)


@pytest.mark.parametrize("url", ["triton:8001", "[::1]:8001", "[fe80::1%eth0]:8001", "a.b-c.example.:1, d_e:65535,"])
def test_addresses_of_tritons(url: str) -> None:
    assert load({"triton_url": url}).triton_url == url


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"api_keys_file": "absent"}, "ECA_API_KEYS_FILE=absent cannot be read"),
        ({"tls_cert": "absent", "tls_key": "absent"}, "ECA_TLS_CERT=absent cannot be read"),
        ({"management_token_file": "absent"}, "ECA_MANAGEMENT_TOKEN_FILE=absent cannot be read"),
        ({"otlp_endpoint": "localhost"}, "ECA_OTLP_ENDPOINT='localhost' is not an address"),
        ({"otlp_endpoint": "localhost:4317"}, "is not an address"),
        ({"otlp_endpoint": "http://"}, "is not an address"),
        ({"otlp_endpoint": "http://[::1:4318"}, "is not an address"),
        ({"otlp_endpoint": "http://collector:$PORT"}, "is not an address"),
        ({"otlp_endpoint": "http://collector:70000"}, "is not an address"),
    ],
)
def test_files_and_addresses_that_cannot_be_used(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        require_files(load(given))


@pytest.mark.parametrize("url", ["http://a_b.c:4318", "HTTPS://me:key@[::1]:4317/v1", "https://collector"])
def test_addresses_of_collectors(url: str) -> None:
    require_files(load({"otlp_endpoint": url}))


def test_the_readme_s_table_is_these_settings() -> None:
    """`python -m eca_service.settings service/README.md` writes it anew."""
    assert table() in (Path(__file__).parents[2] / "service" / "README.md").read_text()
