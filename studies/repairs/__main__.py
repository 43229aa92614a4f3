"""What least squares are worth straight after cutting: by calibration tokens, ridge, precision of moments.

``python -m studies.repairs`` cuts three students of two small teachers (uniform shrink, neurons alone, heads
alone), repairs them in every way, and appends each validation loss to ``results.jsonl`` beside this file as
it comes; it goes on where it stopped, and writes ``RESULTS.md`` (``--table`` alone measures nothing).
``--model DIR --data FILE`` does the same with another teacher.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from studies.bench.results import Results, Row, markdown
from studies.bench.setting import SETTINGS
from studies.repairs.subject import BLOCK, Subject, Way

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "student", "tokens", "ridge", "precision"))
STUDENTS = ("uniform", "neurons", "heads")
TOKENS = (256, 512, 1024, 2048, 4096, 16384, 65536)
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
PRECISIONS = ("float32", "bfloat16")
#: Precisions are compared with these ridges.
_COMPARED = (1e-6, 1e-4, None)


def ways() -> Iterator[Way]:
    """All ways of repair, moments in float64 first."""
    for ridge in (*RIDGES, None):
        yield Way(ridge)
    for precision in PRECISIONS:
        for ridge in _COMPARED:
            yield Way(ridge, precision)


def described(teacher: str, student: str, tokens: int, way: Way | None) -> Row:
    """What a measurement is known by; 0 tokens: nothing is repaired."""
    ridge, precision = (way.name, way.precision) if way else ("", "")
    return {
        "teacher": teacher,
        "student": student,
        "tokens": tokens,
        "ridge": ridge,
        "precision": precision,
    }


def work(teacher: str, data: str, most: int) -> None:
    """Measure what is missing of one teacher."""
    name, tokens = Path(teacher).name, [count for count in TOKENS if count <= most]
    plain = [described(name, student, 0, None) for student in STUDENTS]
    all_ways = [described(name, s, count, way) for s in STUDENTS for count in tokens for way in ways()]
    if not RESULTS.missing([*plain, *all_ways]):
        return
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(teacher, data, max(tokens), Path(folder))
        for student in STUDENTS:
            row = described(name, student, 0, None)
            if RESULTS.missing([row]):
                sizes = {"label": subject.students[student].label, "whole": subject.teacher_loss}
                _add({**row, **sizes, "loss": subject.loss(student, None, Way(None))})
        for count in tokens:
            moments = None
            for student in STUDENTS:
                for way in ways():
                    row = described(name, student, count, way)
                    if RESULTS.missing([row]):
                        moments = moments or subject.moments(count)
                        _add({**row, "loss": subject.loss(student, moments, way)})


def _add(row: Row) -> None:
    RESULTS.add(row)
    print(row, file=sys.stderr, flush=True)


def tables() -> str:
    """For each teacher and student: losses by tokens and ridge, and the worst that precision does."""
    parts = [
        "# Repairs straight after cutting: what was measured\n",
        "Validation loss in nats per token of students as they are cut, repaired by least squares with",
        f"moments in float64 on so many calibration tokens (in blocks of {BLOCK}). Ridges are relative to",
        "the mean square of the kept inputs; *chosen* is decided for each matrix by cross-validation between",
        "two halves of the text. The last columns are by how much the loss of that way changes with moments",
        "kept in float32 and in bfloat16. Written by `python -m studies.repairs --table` from",
        "`results.jsonl`.\n",
    ]
    rows = RESULTS.rows()
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        for student in STUDENTS:
            found = [row for row in rows if (row["teacher"], row["student"]) == (teacher, student)]
            plain = next((row for row in found if not row["tokens"]), None)
            if plain is not None:
                head = f"## {teacher}, {student}: {plain['label']}\n"
                whole = f"The teacher is at {plain['whole']:.3f}, the student without a repair at "
                parts += [head, f"{whole}{plain['loss']:.3f}.\n", _table(found), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    losses = {(row["tokens"], row["ridge"], row["precision"]): row["loss"] for row in rows}
    names = [way.name for way in ways() if way.precision == "float64"]
    compared = [Way(ridge).name for ridge in _COMPARED]
    head = ["tokens", *names, *(f"{name}, {precision}" for precision in PRECISIONS for name in compared)]
    lines = []
    for tokens in sorted({row["tokens"] for row in rows if row["tokens"]}):
        line = [_number(losses.get((tokens, name, "float64"))) for name in names]
        for precision in PRECISIONS:
            for name in compared:
                loss, exact = (losses.get((tokens, name, one)) for one in (precision, "float64"))
                line.append("" if loss is None or exact is None else f"{loss - exact:+.4f}")
        lines.append([f"{tokens:,}", *line])
    return markdown(head, lines)


def _number(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"


def main() -> int:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--model", help="directory of another teacher")
    parser.add_argument("--data", default="", help="its text")
    parser.add_argument("--tokens", type=int, default=TOKENS[-1], help="calibration tokens, at most")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        for teacher in [asked.model] if asked.model else SETTINGS:
            work(teacher, asked.data, asked.tokens)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
