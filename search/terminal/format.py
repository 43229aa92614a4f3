"""Format numbers and tables for people: few digits, a unit, a dash where a value is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, with the first column aligned left and the others right.

    Args:
        rows: rows with the same number of cells, starting with the header if there is one.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


DASH, MINUS = "\u2013", "\u2212"
NO_BREAK_SPACE = "\u00a0"

_DIRECTION_MARKS = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE: dict[int, str | int] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **{code: f"\u27e8{code:02X}\u27e9" for code in range(0x80, 0xA0)},
    **{code: f"\u27e8U+{code:04X}\u27e9" for code in (*_DIRECTION_MARKS, 0x2028, 0x2029)},
}
_ORIGINS = {
    "search": "search",
    "uniform": "uniform shrink",
    "mlp-heads": "MLP and heads only",
    "depth": "depth only",
    "random-weights": "random weights",
    "by-hand": "by hand",
}


def count(value: float | None) -> str:
    """Format a number of parameters or tokens with three digits: ``1.33 M``, ``98.3 k``, ``8.19 B``."""
    if value is None:
        return DASH
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{_digits(value / scale)}{NO_BREAK_SPACE}{suffix}"
    return _minus(f"{value:.0f}")


def nats(value: float | None, digits: int = 3) -> str:
    """Format a loss in nats per token, without the unit."""
    return DASH if value is None else _minus(f"{value:.{digits}f}")


def perplexity(loss: float | None) -> str:
    """Format the perplexity per token, exp(loss), of a loss in nats per token."""
    if loss is None:
        return DASH
    return _digits(math.exp(loss)) if loss < 14 else f"over{NO_BREAK_SPACE}{10**6:,}"


def milliseconds(value: float | None) -> str:
    """Format a latency in milliseconds, without the unit."""
    return DASH if value is None else _digits(value)


def quantity(value: float | None, unit: str = "") -> str:
    """Format a value of an objective, with any unit."""
    if value is None:
        return DASH
    text = count(value) if abs(value) >= 10_000 else _digits(value)
    return f"{text}{NO_BREAK_SPACE}{unit}" if unit else text


def signed(value: float | None, digits: int = 3) -> str:
    """Format a difference with its sign; zero has none."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return _minus(text) if float(text) else text[1:]


def percent(ratio: float | None) -> str:
    """Format a ratio as a percentage: ``50%``, ``3.1%``."""
    if ratio is None:
        return DASH
    text = f"{100 * ratio:.1f}" if abs(ratio) < 0.0995 else f"{100 * ratio:.0f}"
    return _minus(text.removesuffix(".0")) + "%"


def size(value: float | None) -> str:
    """Format bytes on disk: ``845 MB``, ``1.20 GB``."""
    if value is None:
        return DASH
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * scale:
            return f"{_digits(value / scale)}{NO_BREAK_SPACE}{suffix}"
    return f"{value:.0f}{NO_BREAK_SPACE}bytes"


def duration(seconds: float | None) -> str:
    """Format a wall-clock time: ``4.4 s``, ``7 min 58 s``, ``3 h 05 min``."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f}{NO_BREAK_SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK_SPACE}min {whole % 60:02d}{NO_BREAK_SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{NO_BREAK_SPACE}h {minutes % 60:02d}{NO_BREAK_SPACE}min"


def energy(joules: float | None) -> str:
    """Format energy in joules and watt-hours: ``41.3 kJ (11.5 Wh)``."""
    if joules is None:
        return DASH
    return f"{_scaled(joules, 'J')} ({_scaled(joules / 3600, 'Wh')})"


def _scaled(value: float, unit: str) -> str:
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{_digits(value / scale)}{NO_BREAK_SPACE}{prefix}{unit}"
    return f"{_digits(value)}{NO_BREAK_SPACE}{unit}"


def visible(value: Any) -> Any:
    """Replace control and text-direction characters by visible symbols, except tab and line feed.

    Values other than plain ``str`` are returned unchanged: numbers, and markup that is already escaped.
    """
    return value.translate(_VISIBLE) if type(value) is str else value


def origin(name: str) -> str:
    """Return the origin of an architecture in words."""
    return _ORIGINS.get(name, name)


#: Names of all axes but layers for people.
AXES = {
    "hidden": "hidden",
    "mlp": "MLP",
    "heads": "heads",
    "kv_heads": "KV heads",
    "experts": "experts",
    "expert_mlp": "expert MLP",
    "shared_mlp": "shared MLP",
    "head_dim": "head size",
}


def sizes(architecture: dict[str, Any], teacher_layers: int | None = None) -> str:
    """Describe the sizes of an architecture, with the number of the teacher's layers if given."""
    of_teacher = f" of {teacher_layers}" if teacher_layers is not None else ""
    parts = [f"{name} {architecture[key]}" for key, name in AXES.items() if key in architecture]
    return ", ".join([*parts, f"layers {architecture['layers']}{of_teacher}"])


def sentence(text: str) -> str:
    """Return ``text`` with a capital at its start and a full stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".!?" else ".")


def layer_ranges(layers: list[int]) -> str:
    """List layer indices, with consecutive ones joined: ``0, 2 to 5, 7``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = (
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(str(layer) for layer in run) for run in runs
    )
    return ", ".join(words)


def _digits(value: float) -> str:
    """Format with three significant digits, without an exponent, and at most six decimals."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    magnitude = math.floor(math.log10(abs(value)))
    rounded = round(value, 2 - magnitude)
    decimals = max(0, min(6, 2 - math.floor(math.log10(abs(rounded)))))
    return _minus(f"{rounded:,.{decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
