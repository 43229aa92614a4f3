"""The dashboard of a run, and the page that compares runs, as a browser shows them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pytest
from optuna_dashboard import wsgi

from search.compare import main
from search.dashboard.__main__ import artifact_store, guard, server_of
from search.dashboard.content import write_content
from search.runs.saved_run import SavedRun, find_run
from tests.search.report.sample import sample_summary
from tests.search.saved import save_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

_PATIENCE_MS = 60_000


class Visit:
    """A page, and what was asked and said while it was open."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.said: list[str] = []
        page.set_default_timeout(_PATIENCE_MS)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    @property
    def elsewhere(self) -> list[str]:
        """What was asked of anybody but this machine."""
        here = ("127.0.0.1", None)
        return [url for url in self.asked if urlsplit(url).hostname not in here]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """An empty page of headless Chromium."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    yield Visit(page)
    page.close()


@pytest.fixture
def dashboard(small_run: Path, tmp_path: Path) -> Iterator[tuple[SavedRun, str]]:
    """A finished run of one's own, and the address of its dashboard."""
    shutil.copytree(small_run, tmp_path / "small")
    run = find_run(tmp_path / "small")
    store = artifact_store(run)
    write_content(run, store)
    app = guard(wsgi(run.studies[0]._storage, artifact_store=store))
    with server_of(app, None) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield run, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.mark.slow
def test_the_dashboard_shows_studies_figures_and_notes(dashboard: tuple[SavedRun, str], visit: Visit) -> None:
    run, address = dashboard
    summary, page = run.summary, visit.page
    page.goto(address)
    page.get_by_text("small/r2").first.wait_for()
    page.goto(f"{address}/dashboard/studies/{run.studies[0]._study_id}")
    page.locator("svg text", has_text="Pareto front of small").wait_for()
    page.locator("svg text", has_text="Loss by rung and in retraining of small").wait_for()
    chosen = summary["chosen"]["label"]
    assert page.locator("svg text", has_text=f"chosen: {chosen}").count() >= 2, "named in both figures"
    page.goto(f"{address}/dashboard/studies/{run.studies[1]._study_id}/note")
    page.get_by_text("Each candidate is distilled for 2,000 tokens").wait_for()
    page.get_by_role("link", name=chosen).first.click()
    page.get_by_role("heading", name=f"{chosen}: the model to take").wait_for()
    (entry,) = [one for one in summary["promoted"] if one["label"] == chosen]
    page.get_by_role("cell", name=f"{entry['loss']:.4f}", exact=True).wait_for()
    assert page.get_by_text(str(run.path / entry["path"]), exact=True).count() == 1
    page.get_by_role("link", name="Model card").click()
    page.get_by_text("A causal language model of").wait_for()
    assert visit.elsewhere == []
    assert visit.said == []


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_the_page_of_a_comparison_draws_the_joint_front(
    scheme: Literal["light", "dark"], visit: Visit, tmp_path: Path
) -> None:
    summaries = [sample_summary(), sample_summary()]
    for entry in (*summaries[1]["promoted"], *summaries[1]["baselines"]):
        entry["loss"] += 0.2
    runs = [save_run(tmp_path, one, name=f"run-{n}") for n, one in enumerate(summaries)]
    out = tmp_path / "page.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.goto(out.as_uri())
    visit.page.locator("#joint[data-drawn=true]").wait_for()
    legend = visit.page.locator("#joint .legendtext")
    assert legend.all_text_contents() == ["run-0", "run-1"]
    colours = visit.page.locator("#joint .legendlines path").evaluate_all(
        "paths => paths.map(path => getComputedStyle(path).stroke)"
    )
    light, dark = ["rgb(36, 88, 211)", "rgb(180, 80, 15)"], ["rgb(134, 173, 255)", "rgb(240, 163, 107)"]
    assert colours == (light if scheme == "light" else dark)
    models = 2 * (len(summaries[0]["promoted"]) + len(summaries[0]["baselines"]) - 1)
    assert visit.page.locator("#joint .scatterlayer .points path").count() == models
    label = summaries[0]["chosen"]["label"]
    assert visit.page.locator("#joint .annotation-text", has_text=label).count() == 2
    assert visit.asked == [out.as_uri()]
    assert visit.said == []


def test_the_check_of_requests_can_fail(visit: Visit, tmp_path: Path) -> None:
    page = tmp_path / "asking.html"
    page.write_text('<img src="http://elsewhere.invalid/x.png">')
    visit.page.goto(page.as_uri())
    assert visit.elsewhere == ["http://elsewhere.invalid/x.png"]
    assert visit.said, "that it could not be had"
