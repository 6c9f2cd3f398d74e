"""Prometheus' rules and Grafana's dashboards: parsed and tested by promtool, complete, and held to the service."""

from __future__ import annotations

import re
from pathlib import Path

from eca_service import metrics
from eca_service.errors import CODES

from deploy.grafana import generate
from tests.deploy.observed import PROMETHEUS, ROOT, dashboards, panel_queries, promtool, rules

RUNBOOKS = ROOT / "deploy" / "runbooks"


def test_configuration_is_sound(tmp_path: Path) -> None:
    text = (PROMETHEUS / "prometheus.yml").read_text().replace("/etc/prometheus", str(PROMETHEUS))
    (tmp_path / "prometheus.yml").write_text(text)
    promtool("check", "config", tmp_path / "prometheus.yml")


def test_what_prometheus_is_told_of_tls_and_keys_is_sound(tmp_path: Path) -> None:
    """As it is there to be uncommented."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    text, count = re.subn(r"^    # (\w+: [{\w].*)$", r"    \1", text, flags=re.MULTILINE)
    assert count == 3
    (tmp_path / "key").write_text("key")
    for mounted in ("rules", "targets"):
        (tmp_path / mounted).symlink_to(PROMETHEUS / mounted)
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(tmp_path)))
    promtool("check", "config", tmp_path / "prometheus.yml")


def test_each_alert_comes_when_it_should() -> None:
    promtool("test", "rules", *sorted(PROMETHEUS.glob("*_test.yml")))


def test_each_alert_is_tested() -> None:
    tested = "".join(path.read_text() for path in PROMETHEUS.glob("*_test.yml"))
    assert rules("alert")
    assert {name for name in rules("alert") if f"runbook: deploy/runbooks/{name}.md" not in tested} == set()


def test_each_alert_has_its_page_and_no_link_is_dead() -> None:
    pages = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md")}
    assert pages.keys() == rules("alert").keys()
    links = [link for page in pages.values() for link in re.findall(r"\]\(([^)]+)\)", page)]
    assert [link for link in links if not (RUNBOOKS / link).exists()] == []


def test_errors_are_those_of_the_table() -> None:
    ours = {code for code, kind in CODES.items() if kind.http >= 500}
    named = {match for query in rules("record").values() for match in re.findall(r'code=~"([^"]+)"', query)}
    assert {frozenset(match.split("|")) for match in named} == {frozenset(ours)}


def test_the_slow_threshold_is_a_bucket() -> None:
    assert {float(le) for query in rules("record").values() for le in re.findall(r'le="([^"]+)"', query)} == {0.5}
    assert 0.5 in metrics.SECONDS


def test_dashboards_are_what_the_script_writes() -> None:
    written = {path.name: path.read_text() for path in generate.FOLDER.glob("*.json")}
    assert written == generate.files()


def test_each_query_of_the_dashboards_parses(tmp_path: Path) -> None:
    queries = panel_queries()
    assert len(queries) > 20
    lines = [f"      - record: panel:{number}\n        expr: {query!r}" for number, query in enumerate(queries)]
    lines = [line.replace("\\'", "''") for line in lines]
    (tmp_path / "rules.yml").write_text("groups:\n  - name: panels\n    rules:\n" + "\n".join(lines) + "\n")
    promtool("check", "rules", tmp_path / "rules.yml")


def test_panels_do_not_overlap() -> None:
    for dashboard in dashboards().values():
        cells = [
            (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
            for panel in dashboard["panels"]
            for dx in range(panel["gridPos"]["w"])
            for dy in range(panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24
