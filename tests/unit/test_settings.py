"""Settings come from ECA_ variables, and what is wrong is named."""

from __future__ import annotations

import pytest
from eca_service.settings import SettingsError, load


def test_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="ECA_HTPP_PORT is no setting"):
        load({}, {"ECA_HTPP_PORT": "1"})


def test_out_of_range_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="ECA_HTTP_PORT='70000'"):
        load({"http_port": "70000"}, {})


def test_loopback_is_the_default() -> None:
    assert load({}, {}).host == "127.0.0.1"
