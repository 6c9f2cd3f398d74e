"""Which routes ask for a key, and whom an address stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from eca_service.access import RATES, Access, bearer
from eca_service.errors import ServiceError
from eca_service.keys import make
from eca_service.rates import make_table
from eca_service.settings import Settings

OPEN = ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
CLOSED = [
    "/v1/classify",
    "/v1/models",
    "/v1/models/pin",
    "/v1/models/a/pin",
    "/v2",
    "/v2/models/a/ready",
    "/nothing",
    "/metrics",
    "/docs",
    "//livez",
]


def access(tmp_path: Path, **settings: object) -> tuple[Access, bytes]:
    secret, line = make("team")
    (tmp_path / "keys").write_text(line)
    return Access(Settings(api_keys_file=tmp_path / "keys", **settings)), secret.encode()  # type: ignore[arg-type]


def test_everything_is_closed_but_what_is_named(tmp_path: Path) -> None:
    rules, _ = access(tmp_path)
    assert [path for path in [*OPEN, *CLOSED] if rules.is_open(path)] == OPEN
    rules.open({"/metrics"})
    assert [path for path in CLOSED if rules.is_open(path)] == ["/metrics"]
    reflection = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert rules.is_open_call(reflection)
    rules, _ = access(tmp_path, docs="key")
    assert not rules.is_open_call(reflection)
    calls = ("grpc.health.v1.Health/Watch", "inference.GRPCInferenceService/ServerReady")
    assert all(map(rules.is_open_call, calls))
    assert not rules.is_open_call("inference.GRPCInferenceService/ModelInfer")


def test_the_token_s_route_is_open_to_be_guarded_by_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t" * 32)
    rules, secret = access(tmp_path, management_token_file=tmp_path / "token")
    assert rules.is_open("/v1/models/a/pin")
    for path in ("/v1/models/pin", "/v1/models/a/b/pin", "/v1/models/a/pin/", "/v1/models//pin", "/v2/models/a/pin"):
        assert not rules.is_open(path), path
    rules.require_management(b"Bearer " + b"t" * 32)
    for wrong in (None, b"Bearer " + secret, b"t" * 32, b"Bearer "):
        with pytest.raises(ServiceError, match="unauthorized"):
            rules.require_management(wrong)
    with pytest.raises(ServiceError, match="unauthorized"):
        Access(Settings()).require_management(b"Bearer ")


def test_headers_that_hold_a_key(tmp_path: Path) -> None:
    rules, secret = access(tmp_path)
    assert rules.caller(b"Bearer " + secret, None) == rules.caller(b"bearer  " + secret, None) == "team"
    assert rules.caller(None, secret) == rules.caller(b"Basic eDp5", secret) == "team"
    for authorization, api_key in ((None, None), (b"Bearer x", secret), (secret, None), (None, b"x"), (None, b"")):
        with pytest.raises(ServiceError, match="unauthorized"):
            rules.caller(authorization, api_key)
    assert Access(Settings()).caller(None, None) == ""


@pytest.mark.parametrize("header", [b"", b"Bearer", b"Bearer ", b"Bearer a b", b"Bear a", b"Bearer\xffa"])
def test_headers_that_hold_none(header: bytes) -> None:
    assert bearer(header) is None


def test_callers_with_keys_have_a_rate_each_wherever_they_call_from(tmp_path: Path) -> None:
    rules, _ = access(tmp_path, rate_limit=1)
    assert rules.admit("team", "10.0.0.1") == "team"
    with pytest.raises(ServiceError, match="rate_limited"):
        rules.admit("team", "10.0.0.2")
    assert rules.admit("other", "10.0.0.1") == "other"


def test_further_images_count_and_in_all_workers(tmp_path: Path) -> None:
    make_table(tmp_path / RATES)
    settings = Settings(rate_limit=1, rate_burst=3, rate_by="address")
    one, other = (Access(settings, tmp_path) for _ in range(2))
    account = one.admit("", "10.0.0.1")
    assert other.admit("", "10.0.0.1") == account
    one.charge(account, 1)
    with pytest.raises(ServiceError, match="rate_limited"):
        other.admit("", "10.0.0.1")


def test_addresses_that_are_one_caller() -> None:
    rules = Access(Settings(rate_limit=1, rate_by="address"))
    same = ("2001:db8::1", "2001:db8::ffff:2"), ("::ffff:10.0.0.1", "10.0.0.1")
    for one, other in same:
        assert rules.admit("", one)
        with pytest.raises(ServiceError, match="rate_limited"):
            rules.admit("", other)
    assert {rules.admit("", a) for a in ("10.0.0.2", "2001:db8:0:1::1", "::ffff:10.0.0.3", "", "@unix")} == {
        *("10.0.0.2", "2001:db8:0:1::/64", "10.0.0.3", "", "@unix")
    }
