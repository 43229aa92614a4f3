"""Figures for pages without the report's style sheet: whole, coloured, and with labels that can be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from search.report.figures.curves import curves_figure
from search.report.figures.figure import Figure
from search.report.figures.front import front_figure
from search.report.figures.plotly_object import plotly_object
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS

Make = Callable[[dict[str, Any]], Figure | None]
FIGURES: dict[str, Make] = {"front": front_figure, "curves": curves_figure}


@pytest.mark.parametrize("name", ["sample", *VARIANTS])
@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_becomes_a_plotly_object_without_names_of_colours(kind: str, name: str) -> None:
    figure = FIGURES[kind]((VARIANTS | {"sample": sample_summary})[name]())
    if figure is None:
        assert name in ("nothing_evaluated", "all_failed")
        return
    drawn = plotly_object(figure, "A title")
    assert len(drawn.data) == len(figure.traces)
    assert re.search(r'"@(accent|soft|faint|ink|paper|panel|rule|grid|warn|font)', drawn.to_json()) is None
    assert drawn.layout.title.text == "A title"


def test_labels_beside_keep_their_order_within_the_axes() -> None:
    figure = curves_figure(sample_summary())
    assert figure is not None
    drawn = plotly_object(figure, "A title")
    low, high = drawn.layout.yaxis.range
    heights = {one.text: one.y for one in drawn.layout.annotations}
    assert set(heights) == {f"<b>{one.text}</b>" if one.strong else one.text for one in figure.labels}
    assert all(low < height <= high for height in heights.values()), "else Plotly does not draw them"
    by_loss = sorted(figure.labels, key=lambda label: label.y)
    texts = [f"<b>{one.text}</b>" if one.strong else one.text for one in by_loss]
    assert [heights[text] for text in texts] == sorted(heights.values())


def test_labels_around_keep_clear_of_one_another() -> None:
    figure = front_figure(sample_summary())
    assert figure is not None
    drawn = plotly_object(figure, "A title")
    (left, right), (low, high) = drawn.layout.xaxis.range, drawn.layout.yaxis.range
    boxes = []
    for one in drawn.layout.annotations:
        width = 7 * len(re.sub("<.*?>", "", one.text))
        x = (one.x - left) / (right - left) * 500 + one.xshift
        x -= {"left": 0.0, "center": 0.5, "right": 1.0}[one.xanchor] * width
        y = (one.y - low) / (high - low) * 330 + one.yshift
        boxes.append((x, x + width, y, y + 14))
    assert len(boxes) >= 2
    assert {"<b>teacher</b>"} < {one.text for one in drawn.layout.annotations}
    for (a0, a1, b0, b1), (c0, c1, d0, d1) in itertools.combinations(boxes, 2):
        assert a1 <= c0 or c1 <= a0 or b1 <= d0 or d1 <= b0
