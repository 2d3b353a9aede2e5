"""A real Prometheus server scrapes the busy stack, and answers every query of the dashboard and every alert rule."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import httpx2
import pytest

from asgi_enhance.testing.live import LiveServer, free_port
from tests.external.conftest import TRACE
from tests.metrics.test_grafana import GRAFANA, expressions

NOT_IN_THIS_RUN = {
    "panel Error ratio, B": "nobody leaves",
}

BUCKETS = "http_server_request_duration_seconds_bucket"

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: busy
    static_configs: [{{targets: ["{target}"]}}]
"""


@pytest.fixture
def prometheus(busy: LiveServer, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("prometheus")
    assert program is not None, "prometheus is not installed: apt-get install prometheus"
    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text(CONFIG.format(rules=GRAFANA / "alerts.yml", target=busy.url.removeprefix("http://")))
    options = [
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, *options, "--enable-feature=exemplar-storage"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def ask(client: httpx2.AsyncClient, path: str, **query: str) -> Any:
    answer = (await client.get(f"/api/v1/{path}", params=query)).json()
    assert answer["status"] == "success", answer
    return answer["data"]


async def until(client: httpx2.AsyncClient, query: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            try:
                if found := (await ask(client, "query", query=query))["result"]:
                    return found
            except (httpx2.HTTPError, json.JSONDecodeError):
                pass  # it is still starting
            await asyncio.sleep(0.2)


async def test_prometheus_scrapes_it_and_answers_every_query(traffic: LiveServer, prometheus: str) -> None:
    async with httpx2.AsyncClient(base_url=prometheus) as client:
        await until(client, 'count_over_time(http_server_request_duration_seconds_count{http_route="/broken"}[1m]) > 4')
        (target,) = (await ask(client, "targets"))["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        for place, expression in expressions().items():
            if place == "alert rules" or place in NOT_IN_THIS_RUN:
                continue
            expression = expression.replace("$__rate_interval", "1m").replace("$job", ".*")
            assert (await ask(client, "query", query=expression))["result"], f"{place} is empty: {expression}"
        traces = await ask(client, "query_exemplars", query=BUCKETS, start=str(time() - 60), end=str(time()))
        assert {one["labels"]["trace_id"] for series in traces for one in series["exemplars"]} == {TRACE}
        await until(client, "job:http_server_errors:ratio_rate5m > 0")
        groups = (await ask(client, "rules"))["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        firing = {alert["labels"]["alertname"] for alert in (await ask(client, "alerts"))["alerts"]}
        assert "ErrorBudgetBurnsFast" in firing  # one request in a hundred is broken on purpose


def test_the_rules_are_good_and_so_is_the_scrape(busy: LiveServer) -> None:
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed: apt-get install prometheus"
    subprocess.run([program, "check", "rules", GRAFANA / "alerts.yml"], check=True)
    text = httpx2.get(f"{busy.url}/metrics", params={"scope": "process"}).content
    told = subprocess.run([program, "check", "metrics"], input=text, capture_output=True)
    assert told.returncode == 0, (told.stdout + told.stderr).decode()
