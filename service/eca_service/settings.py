"""The service's settings: each is an environment variable ECA_..., checked at start."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from eca_service import cgroups

PREFIX = "ECA_"
ORIGIN = re.compile(r"https?://[^/*,\s]+")
ADDRESS = re.compile(r"([\w-]{1,63}(\.[\w-]{1,63})*\.?|\[[0-9a-fA-F:.]+(%\w+)?]):(?P<port>\d{1,5})")  # a name or an IP
Switch = Literal["on", "key", "off"]
MOST = 2_000_000_000  # of bytes and milliseconds: gRPC's numbers have 32 bits


class SettingsError(Exception):
    """A setting that is unknown or out of its range; the message names the variable."""


class Settings(BaseSettings):
    """All settings, with units in their names. Secrets are never among them, only the files that hold them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; `::` is every one, of IPv4 too")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0: a free one")
    triton_grpc_port: int = Field(8001, ge=0, le=65535, description="gRPC port of the embedded Triton; 0: a free one")
    triton_host: str = Field("127.0.0.1", description="address the embedded Triton listens on, without keys")
    grpc_port: int = Field(8081, ge=0, le=65535, description="gRPC port; 0: a free one")
    workers: int = Field(
        1, ge=1, le=256, description="gateway processes; the in-flight limits and decode threads are divided among them"
    )
    triton_url: str | None = Field(
        None,
        description="for `eca-serve gateway`: host:port of your own Triton, or several, separated by commas; all "
        "addresses of a host name are used",
    )
    triton_shared_memory: bool = Field(
        False,
        description="send tensors through /dev/shm, which your own Triton must share; always on for the embedded one",
    )
    triton_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="threads for an engine on a CPU; unset: its cores; tell a separate gateway its Triton's number",
    )
    triton_log: Path = Field(Path(".cache/triton.log"), description="log file of the embedded Triton")
    repository: Path = Field(Path("model_repository"), description="model repository")
    default_model: str | None = Field(
        None, description="model of /v1/classify; unset: the first one with ECA, else the first one, by name"
    )
    max_body_bytes: int = Field(32 << 20, ge=1024, le=MOST, description="largest request body")
    max_pixels: int = Field(50_000_000, ge=1, description="largest image, in pixels")
    max_images: int = Field(64, ge=1, le=4096, description="most images in a request")
    max_inflight_images: int = Field(256, ge=1, description="most images in flight; 429 above it")
    max_inflight_bytes: int = Field(256 << 20, ge=1024, description="most bytes of bodies in flight; 429 above it")
    preprocessing: Literal["fast", "reference"] = Field(
        "fast", description="how images are resized: fast, or reference (by Pillow); compared in service/ACCURACY.md"
    )
    decode_threads: int = Field(
        cgroups.cores(),
        ge=1,
        le=256,
        description="threads that decode images",
        json_schema_extra={"shown": "cores"},
    )
    max_head_bytes: int = Field(
        32 << 10, ge=1024, le=MOST, description="largest head of a request (request line and headers)"
    )
    head_timeout_ms: int = Field(10_000, ge=1, le=MOST, description="how long a request's head may take to arrive")
    body_timeout_ms: int = Field(60_000, ge=1, le=MOST, description="how long a request's body may take to arrive")
    keep_alive_ms: int = Field(65_000, ge=1, le=MOST, description="how long an idle HTTP connection is kept")
    deadline_ms: int = Field(30_000, ge=1, le=MOST, description="deadline of a request that sets none")
    drain_delay_ms: int = Field(0, ge=0, le=MOST, description="on SIGTERM: how long to go on answering while not ready")
    grace_ms: int = Field(20_000, ge=0, le=MOST, description="on SIGTERM: how long running requests have to finish")
    retire_ms: int = Field(10_000, ge=0, le=MOST, description="how long a replaced version stays loaded")
    api_keys_file: Path | None = Field(
        None, description="file of hashed API keys, see `eca-serve key`; unset: no key is needed"
    )
    rate_limit: float | None = Field(
        None, ge=1e-6, le=1e9, description="images a second that one caller may send; 429 above it"
    )
    rate_burst: int | None = Field(
        None, ge=1, le=10**9, description="images a caller may send in one burst; unset: a second's worth"
    )
    rate_by: Literal["key", "address"] = Field(
        "key", description="what identifies a caller: key, or address (the client's)"
    )
    management_token_file: Path | None = Field(
        None, description="file with the token for rolling models back over HTTP; unset: nobody can"
    )
    tls_cert: Path | None = Field(None, description="certificate chain (PEM) for both ports; needs ECA_TLS_KEY")
    tls_key: Path | None = Field(None, description="private key (PEM) of the certificate, without a password")
    cors_origins: str | None = Field(None, description="origins whose web pages may call, separated by commas")
    page: Literal["on", "off"] = Field("on", description="whether the page at / is served: on, off")
    docs: Switch = Field(
        "on",
        description="who may use /docs and gRPC reflection: on (everybody), key (callers with a key), off (nobody)",
    )
    metrics: Switch = Field(
        "on", description="who may read /metrics: on (everybody), key (callers with a key), off (nobody)"
    )
    otlp_endpoint: str | None = Field(
        None, description="collector that traces are sent to; unset: OTEL_EXPORTER_OTLP_ENDPOINT, if set"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level logged: debug, info, warning, error"
    )
    log_format: Literal["json", "text"] | None = Field(
        None, description="format of the log: json, text; unset: text on a terminal, else json"
    )

    @property
    def origins(self) -> list[str]:
        """The origins of `cors_origins`."""
        return [origin.strip() for origin in (self.cors_origins or "").split(",") if origin.strip()]

    @model_validator(mode="before")
    @classmethod
    def _none_is_empty(cls, given: dict[str, object]) -> dict[str, object]:
        """What is there and empty is no way to leave a setting out: it was to be a file of keys, or an address."""
        for name, value in given.items():
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{PREFIX}{name.upper()} is empty; give it a value or remove it")
        return given

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """What no field can check alone; the message begins with the variable's name."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("ECA_TLS_CERT and ECA_TLS_KEY go together; one of them is not set")
        if self.rate_limit and self.rate_by == "key" and not self.api_keys_file:
            raise ValueError(
                "ECA_RATE_LIMIT counts by key, but ECA_API_KEYS_FILE is not set; set it or ECA_RATE_BY=address"
            )
        if self.rate_burst and not self.rate_limit:
            raise ValueError("ECA_RATE_BURST is set, but ECA_RATE_LIMIT is not, so nothing would be limited")
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"ECA_CORS_ORIGINS: {origin!r} is not an origin such as https://example.org")
        for address in () if self.triton_url is None else self.triton_url.strip(" ,").split(","):
            found = ADDRESS.fullmatch(address.strip())
            if not found or not 0 < int(found["port"]) < 1 << 16:
                raise ValueError(f"ECA_TRITON_URL: {address.strip()!r} is not a host and port such as triton:8001")
        if self.http_port == self.grpc_port != 0:
            raise ValueError(f"ECA_HTTP_PORT and ECA_GRPC_PORT are both {self.http_port}; change one of them")
        return self


BUILD_STEP = {"ECA_ARCH", "ECA_NAME", "ECA_LABELS", "ECA_IMAGES", "ECA_TARGET", "ECA_PRECISION", "ECA_MAX_BATCH"}
BUILD_STEP |= {"ECA_ATTENTION_GRAPH", "ECA_ATTENTION", "ECA_EXPOSE_GATES", "ECA_RUNTIME", "ECA_CALIBRATION"}
BUILD_STEP |= {"ECA_FRONTEND", "ECA_RESIZE", "ECA_CROP", "ECA_FILTER", "ECA_MEAN", "ECA_STD", "ECA_MOST_IMAGES"}
BUILD_STEP |= {"ECA_CLASSES", "ECA_WIDTH", "ECA_SEED"}
CLIENT = {"ECA_URL", "ECA_CA", "ECA_API_KEY_FILE", "ECA_MODEL", "ECA_TOP_K", "ECA_CONCURRENCY"}
CLIENT |= {"ECA_OPACITY", "ECA_SIDE", "ECA_SECONDS"}


def load(given: Mapping[str, object]) -> Settings:
    """Settings from the environment, `given` ones first. Raises SettingsError with the variable's name."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | BUILD_STEP | CLIENT
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        linked = "KUBERNETES_SERVICE_HOST" in os.environ  # where a Service called eca-... makes such variables
        hint = "; if it comes from a Service's name, set enableServiceLinks: false in the pod's spec" if linked else ""
        raise SettingsError(f"{unknown[0]} is not a setting; `eca-serve up --help` lists them{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
        name = PREFIX + str(first["loc"][0]).upper()
        raise SettingsError(f"{name}={first['input']!r}: {first['msg'].lower()}") from None


def require_file(file: Path, variable: str) -> None:
    """Raises SettingsError for what is there and no regular file, where it is to be read again whenever it changes.

    A FIFO, as the shell's <(...) is, has everything for one reader once, and the next one waits for a writer.
    """
    if os.path.exists(file) and not os.path.isfile(file):  # pathlib's raise where a folder may not be searched
        raise SettingsError(f"{variable}={file} is no regular file, so that it cannot be read again when it changes")


def default_of(field: FieldInfo) -> str:
    """A setting's default as people read it; empty where there is none."""
    shown: Any = field.json_schema_extra
    if isinstance(shown, dict):
        return str(shown["shown"])
    return "" if field.default is None else str(field.default)


def table() -> str:
    """All settings as a Markdown table; service/README.md holds it, and a test compares them."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = default_of(field)
        rows.append(f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else ''} | {field.description} |")
    return "\n".join(rows)


def write_table(readme: Path) -> None:
    """Puts the table in the place of the one that `readme` has."""
    lines = readme.read_text().splitlines()
    first = lines.index(table().splitlines()[0])
    rest = next((at for at in range(first, len(lines)) if not lines[at].startswith("|")), len(lines))
    readme.write_text("\n".join([*lines[:first], table(), *lines[rest:]]) + "\n")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
