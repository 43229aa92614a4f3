"""A browser that reaches nothing, and what a page does in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ACCENT = {"light": "rgb(36, 88, 211)", "dark": "rgb(134, 173, 255)"}
#: Of the marks within a figure's axes that lead to rows, the one farthest from its neighbours.
_MARK = """name => {
  const element = document.getElementById(name), { xaxis, yaxis, _size } = element._fullLayout;
  const corner = element.getBoundingClientRect();
  const marks = element._fullData.flatMap(trace => (trace.customdata || []).map((row, at) =>
    ({ row, x: xaxis.d2p(trace.x[at]), y: yaxis.d2p(trace.y[at]) })))
    .filter(({ x, y }) => x >= 0 && y >= 0 && x <= xaxis._length && y <= yaxis._length);
  const space = mark => Math.min(...marks.filter(other => other.row !== mark.row)
    .map(other => Math.hypot(other.x - mark.x, other.y - mark.y)));
  const { row, x, y } = marks.filter(mark => mark.row !== "model-teacher")
    .reduce((best, mark) => (space(mark) > space(best) ? mark : best));
  return { row, x: corner.left + _size.l + x, y: corner.top + _size.t + y };
}"""

_REST = """() => {
  document.activeElement.blur();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  document.querySelector(".filter button").click();
  if (location.hash) location.hash = "";
}"""


@dataclass
class Visit:
    """A page, and what it did that it should not have done."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def open(self, path: Path, scripts: bool) -> Visit:
        """Open a file and wait until its figures are drawn, or have failed, unless scripts do not run."""
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._dismiss)
        self.page.goto(path.as_uri())
        if scripts:
            self.page.wait_for_function(
                "[...document.querySelectorAll('.plot')].every(p => p.dataset.drawn || p.matches('.undrawn'))"
            )
            self.page.evaluate("new Promise(done => setTimeout(done))")  # what failed has been told by then
        self.requests.remove(path.as_uri())
        return self

    def rest(self) -> None:
        """Undo what was done: nothing has the focus or is the target, no way is shown, no row is hidden."""
        self.page.mouse.move(0, 0)
        self.page.evaluate(_REST)

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @property
    def calm(self) -> bool:
        """Whether there was no error, no request and no dialog."""
        return not (self.console or self.requests or self.dialogs)

    @property
    def drawn(self) -> list[bool]:
        """Of each figure whether it was drawn."""
        plots: list[bool] = self.page.eval_on_selector_all(
            ".plot", "all => all.map(one => one.dataset.drawn === 'true' && !!one.querySelector('.main-svg'))"
        )
        return plots

    def column(self, table: str, column: int) -> list[str]:
        """The texts of a column, of the rows that are shown."""
        cells: list[str] = self.page.eval_on_selector_all(
            f"#{table} tbody tr",
            f"rows => rows.filter(row => !row.hidden).map(row => row.cells[{column}].textContent.trim())",
        )
        return cells

    def mark(self, figure: str) -> dict[str, Any]:
        """Scroll to a figure and find a mark that leads to a row: ``x``, ``y`` on the screen, and ``row``."""
        self.page.eval_on_selector(
            f"#{figure}", "e => e.scrollIntoView({ block: 'center', behavior: 'instant' })"
        )
        found: dict[str, Any] = self.page.evaluate(_MARK, figure)
        return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; there has to be one."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
