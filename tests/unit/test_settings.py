"""Settings come from ECA_ variables, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from eca_service.gateway import require_files
from eca_service.settings import SettingsError, load, table


def test_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="ECA_HTPP_PORT is no setting"):
        load({}, {"ECA_HTPP_PORT": "1"})


def test_out_of_range_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="ECA_HTTP_PORT='70000'"):
        load({"http_port": "70000"}, {})


def test_loopback_is_the_default() -> None:
    assert load({}, {}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate_limit": "5"}, "ECA_RATE_LIMIT counts by key and ECA_API_KEYS_FILE is not set"),
        ({"rate_limit": "0"}, "ECA_RATE_LIMIT='0'"),
        ({"cors_origins": "https://a.example, *"}, "ECA_CORS_ORIGINS: '\\*' is no origin"),
        ({"cors_origins": "https://a.example/path"}, "is no origin"),
        ({"metrics": "maybe"}, "ECA_METRICS='maybe'"),
        ({"tls_key": "key.pem"}, "ECA_TLS_CERT and ECA_TLS_KEY go together"),
    ],
)
def test_settings_that_do_not_agree(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(given, {})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"api_keys_file": "absent"}, "ECA_API_KEYS_FILE=absent cannot be read"),
        ({"tls_cert": "absent", "tls_key": "absent"}, "ECA_TLS_CERT=absent cannot be read"),
        ({"management_token_file": "absent"}, "ECA_MANAGEMENT_TOKEN_FILE=absent cannot be read"),
        ({"otlp_endpoint": "localhost"}, "ECA_OTLP_ENDPOINT='localhost' is no address"),
        ({"otlp_endpoint": "localhost:4317"}, "is no address"),
    ],
)
def test_files_and_addresses_that_cannot_be_used(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        require_files(load(given, {}))


def test_the_readme_s_table_is_these_settings() -> None:
    """`python -m eca_service.settings service/README.md` writes it anew."""
    assert table() in (Path(__file__).parents[2] / "service" / "README.md").read_text()
