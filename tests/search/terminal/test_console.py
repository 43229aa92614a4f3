"""What a person sees of a run: on a terminal, in a file, and when told to be quiet."""

from __future__ import annotations

import io
import logging
import re

import pytest

from search.rungs.evaluation import SEARCH
from search.terminal.console import Console, TimeForecast, clock
from tests.search.synthetic import Evaluator, demo_space, make_search, run_config
from tests.search.terminal.screen import Screen

WIDTH = 100


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes stderr a terminal; no fixture, since pytest takes stderr for itself before the test begins."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stream


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines come as fast as there is something to say."""
    monkeypatch.setattr("search.terminal.console._LOG_EVERY_SECONDS", -1.0)


def a_run(console: Console) -> None:
    """Some of everything that a run shows."""
    console.forecast.planned.update({"forward": 100, "distil": 400})
    with console.running():
        console.say("reading the text of stdlib")
        with console.stage("ranking"), console.work("ranking every axis", "forward", 100) as advance:
            for _ in range(4):
                advance(25)
        for number, loss in enumerate([2.5, 1.5, 2.0, 1.75]):
            with console.work(f"rung 1, trial {number}: h96-m{number}", "distil", 100) as advance:
                advance(50)
                advance(50)
            console.trial_done(1, f"h96-m{number}", loss)
        logging.getLogger("search.rungs.loop").warning("trial 3 of rung 1 failed")
        console.say("done")


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], at_once: None
) -> None:
    console = Console()
    assert not console.live
    a_run(console)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line) for line in err.splitlines()]
    assert all(lines), "each line has its time"
    texts = [line[1] for line in lines if line]
    assert texts[0] == "reading the text of stdlib"
    assert "ranking every axis  25%   0 s left" in texts
    assert "rung 1, trial 2: h96-m2  50%  best 1.5000 at rung 1   0 s left" in texts
    told = [re.sub(" +", " ", text) for text in texts if text.startswith("rung 1 h") or "   best" in text]
    assert told == [
        "rung 1 h96-m0 loss 2.5000 best 2.5000 h96-m0 0 s left",
        "rung 1 h96-m1 loss 1.5000 best 1.5000 h96-m1 0 s left",
        "rung 1 h96-m2 loss 2.0000 best 1.5000 h96-m1 0 s left",
        "rung 1 h96-m3 loss 1.7500 best 1.5000 h96-m1 0 s left",
    ]
    assert texts[-2:] == ["trial 3 of rung 1 failed", "done"]
    assert "\x1b" not in err


def test_plain_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    a_run(Console())
    assert not re.search(r"%", capsys.readouterr().err), "nothing took ten seconds"


def test_quiet_is_silent_but_for_warnings(capsys: pytest.CaptureFixture[str], at_once: None) -> None:
    a_run(Console(quiet=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d trial 3 of rung 1 failed\n", err)


def test_verbose_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    Console(verbose=True)
    logging.getLogger("optuna").info("from a library")
    logging.getLogger("evaluators.corpus").debug("a detail")
    err = capsys.readouterr().err
    assert "from a library" in err
    assert "a detail" in err


def test_on_a_terminal_what_is_said_stays_whole_and_the_live_line_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, console = terminal(monkeypatch), Console()
    assert console.live
    a_run(console)
    printed = stream.getvalue()
    screen = Screen(printed, WIDTH)
    assert "\x1b[2K" in printed, "a live line was there"
    texts = [re.sub(r"^\[\d\d:\d\d:\d\d\] |^ {11}", "", line) for line in screen.text if line]
    shown = [re.sub(r"^(INFO|WARNING) +", "", text) for text in texts]
    assert shown[0] == "reading the text of stdlib"
    assert [re.sub(" +", " ", text) for text in shown[1:5]] == [
        "rung 1 h96-m0 loss 2.5000 best 2.5000 h96-m0 0 s left",
        "rung 1 h96-m1 loss 1.5000 best 1.5000 h96-m1 0 s left",
        "rung 1 h96-m2 loss 2.0000 best 1.5000 h96-m1 0 s left",
        "rung 1 h96-m3 loss 1.7500 best 1.5000 h96-m1 0 s left",
    ]
    assert shown[5:] == ["trial 3 of rung 1 failed", "done"]
    assert screen.column == 0


def test_the_live_line_is_one_line_with_all_there_is_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, console = terminal(monkeypatch), Console()
    with console.running():
        console.trial_done(0, "h96-m288-q4-kv2-l8", 3.0)
        console.trial_done(1, "h96-m288-q4-kv2-l8", 2.125)
        console.forecast = TimeForecast({"distil": 1000})
        with console.work("rung 1, trial 12: h128-m352-q8-kv4-l4", "distil", 1000) as advance:
            console.forecast.spend("distil", 500, 3000.0)
            advance(100)
            assert console._progress is not None
            console._progress.refresh()
            last = [line for line in Screen(stream.getvalue(), WIDTH).text if line][-1]
    assert "rung 1, trial 12: h128-m352-q8-kv4-l4  best 2.1250 at rung 1" in last
    assert re.search(r"━.* 33 min left +0:00:\d\d$", last)


def test_an_error_within_leaves_the_terminal_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, console = terminal(monkeypatch), Console()
    with pytest.raises(KeyboardInterrupt), console.running(), console.stage("search"):
        raise KeyboardInterrupt
    printed = stream.getvalue()
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h") == 1, "the cursor is back"
    assert Screen(printed, WIDTH).text[-1] == ""
    assert list(console.stage_seconds) == ["search"]


def test_stages_are_timed_and_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    console, now = Console(quiet=True), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (2.0, 3.0):
        with console.stage("search"):
            now[0] += seconds
    with console.stage("retraining"):
        now[0] += 1.0
    assert console.stage_seconds == {"search": 5.0, "retraining": 1.0}


class Clock:
    """A time that passes only when work is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_work_that_reports_no_steps_counts_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    console, time = Console(quiet=True), Clock(monkeypatch)
    console.forecast.planned.update({"score": 400})
    with console.work("a candidate", "score", 100):
        time.now += 5.0
    assert console.forecast.left() == pytest.approx(15.0)


def test_the_time_after_the_last_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    console, time = Console(quiet=True), Clock(monkeypatch)
    console.forecast.planned.update({"distil": 300})
    with console.work("a candidate", "distil", 100) as advance:
        time.now += 4.0
        advance(100)
        time.now += 1.0  # the last validation
    assert console.forecast.left() == pytest.approx(10.0)


def test_work_that_ends_early_is_done_and_says_nothing_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    console, time = Console(quiet=True), Clock(monkeypatch)
    console.forecast.planned.update({"distil": 200})
    with console.work("a candidate that diverges", "distil", 100) as advance:
        time.now += 1.0
        advance(10)
    assert console.forecast.left() == pytest.approx(10.0)


def test_a_search_that_goes_on_has_less_left_and_ends_with_nothing_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, time = run_config(), Clock(monkeypatch)
    scored = config.validation_blocks * config.block

    class Slow(Evaluator):
        def evaluate(self, architecture, rung, advance):  # type: ignore[no-untyped-def]
            time.now += 1.0 if rung == 0 else 4.0 * rung
            return super().evaluate(architecture, rung, advance)

    search = make_search(config, demo_space(), evaluator=Slow(stop_at=11))
    search.console.forecast.planned.update({"score": 12 * scored, "distil": 6 * 1000 + 3 * 2000})
    with pytest.raises(KeyboardInterrupt):
        search.run()
    again = make_search(config, demo_space(), search.rungs, Slow())
    again.console.forecast.planned.update(search.console.forecast.planned)
    before = search.console.forecast.left()
    began = time.now
    again.run()
    assert before == pytest.approx(time.now - began, rel=0.25)
    assert again.console.forecast.left() == 0.0
    assert {record.origin for record in again.rungs[0].records()} >= {SEARCH}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "?"),
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (97.0, "1 min 40 s"),
        (594.0, "9 min 50 s"),
        (599.0, "10 min"),
        (5400.0, "90 min"),
        (9000.0, "2.5 h"),
    ],
)
def test_times_as_people_say_them(seconds: float | None, said: str) -> None:
    assert clock(seconds) == said
