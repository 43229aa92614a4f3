"""Render the report as one HTML file that loads nothing from the network.

Its Content-Security-Policy allows scripts by digest only, so text that slipped through the escaping still
could not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search.report.decision import decide
from search.report.figures.curves import curves_figure
from search.report.figures.foresight import intervals_figure, stability_panels, verdict
from search.report.figures.importance import importance_panels
from search.report.figures.kept import fields_left_out, kept_figure, kept_in_words
from search.report.figures.pairs import front_with_menu
from search.report.figures.rates import rate_panels
from search.report.figures.sizes import sizes_figure
from search.report.figures.tasks import task_panels
from search.report.inspection import breakdown_stacks, side_by_side
from search.report.tables import benchmark_table, distillation_rows, rank_table
from search.runs.saved_run import RankingView
from search.runs.summary import bounds_of, check, over_in_words, over_labels
from search.runs.trajectories import candidate, model_row, retrained_entries, trajectories, trial_row
from search.settings.objectives import bounds_in_words
from search.storage.run_directory import atomic_write
from search.terminal import format as words

#: Each script uses those before it; the last one draws the figures.
_SCRIPTS = ("unpack.js", "colours.js", "labels.js", "tables.js", "rows.js", "figures.js")
_FILTERS = (
    words.count,
    words.nats,
    words.perplexity,
    words.milliseconds,
    words.quantity,
    words.signed,
    words.percent,
    words.duration,
    words.energy,
    words.origin,
    words.sizes,
    words.layer_ranges,
    words.sentence,
    over_in_words,
    candidate,
    model_row,
    trial_row,
)


def write_report(summary: dict[str, Any], ranking: RankingView | None, path: Path) -> None:
    """Write the report of a run to ``path``; links are relative to its folder.

    Raises:
        InputError: the summary does not follow its schema; nothing is written.
    """
    check(summary)
    atomic_write(path, report_html(summary, ranking))


def report_html(summary: dict[str, Any], ranking: RankingView | None) -> str:
    """Return the HTML of the report; ``summary`` must have been checked."""
    return page_html(
        "page.html.j2",
        summary=summary,
        decision=decide(summary),
        front=front_with_menu(summary),
        curves=curves_figure(summary),
        rates=rate_panels(summary),
        intervals=intervals_figure(summary),
        verdict=verdict(summary),
        panels=stability_panels(summary),
        ranks=rank_table(summary),
        sizes=sizes_figure(summary),
        axes=words.AXES,
        importance=importance_panels(summary, ranking) if ranking else [],
        method=ranking.method if ranking else "",
        retrained=_retrained(summary),
        over=over_labels(summary),
        bounds=bounds_in_words(bounds_of(summary)),
        columns=_columns(summary),
        benchmarks=benchmark_table(summary),
        kept=kept_figure(summary),
        kept_in_words=kept_in_words(summary),
        kept_left_out=fields_left_out(summary),
        task_panels=task_panels(summary),
        prompts=side_by_side(summary),
        stacks=breakdown_stacks(summary),
        followed={trajectory.label for trajectory in trajectories(summary)},
        distillation=distillation_rows(summary),
    )


def page_html(template: str, **values: Any) -> str:
    """Render a page with the style, scripts and security policy of the report.

    Args:
        template: file name of the template in ``page/``.
        values: variables of the template; text is escaped.
    """
    plotly, script = get_plotlyjs(), _page_script()
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_asset("page.css")),
            packed=_packed(plotly),
            script=Markup(script),
            digests=[_digest(plotly), _digest(script)],
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("search.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=words.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS}, href=_href)
    return environment


def _retrained(summary: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
    """Return the promoted models, then the baselines, each sorted by loss with failures last."""

    def key(found: tuple[bool, dict[str, Any]]) -> tuple[bool, float]:
        promoted, entry = found
        return not promoted, float("inf") if entry["loss"] is None else float(entry["loss"])

    return sorted(retrained_entries(summary), key=key)


def _columns(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objectives, then the bounds on anything that is not an objective."""
    minimised = {objective["name"] for objective in summary["objectives"]}
    return [*summary["objectives"], *(one for one in summary["bounds"] if one["name"] not in minimised)]


def _href(path: str) -> str:
    """Return a percent-encoded relative link to a folder."""
    return "./" + quote(path.rstrip("/")) + "/"


def _page_script() -> str:
    """Return the page's scripts wrapped in one function, so that they define no globals."""
    return '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "})();"


def _asset(name: str) -> str:
    return files("search.report").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _packed(script: str) -> str:
    """Return a script as base64 of gzip, which ``unpack.js`` unpacks."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _digest(script: str) -> str:
    """Return the digest by which a Content-Security-Policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
