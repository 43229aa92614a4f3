"""What hangs is ended, what is slow but gives signs is not, and nothing of the timer stays behind."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from evaluators.tasks.stalls import StalledError, interrupted_if_silent


def test_what_gives_no_sign_is_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(StalledError) as error, interrupted_if_silent("the quiz", 0.2):
        time.sleep(60)
    assert time.monotonic() - began < 30
    assert str(error.value) == (
        "Code of others has to give a sign once in 0.00333 minutes; the quiz gave none, and was stopped. "
        "See whether the data that it needs can be had, or leave it out."
    )


def test_code_that_catches_the_interruption_is_interrupted_again() -> None:
    caught = []

    def stubborn() -> None:
        for _ in range(3):
            try:
                time.sleep(60)
            except StalledError as error:
                caught.append(error)
        time.sleep(60)

    with pytest.raises(StalledError), interrupted_if_silent("the quiz", 0.2):
        stubborn()
    assert len(caught) == 3


def test_slow_work_that_gives_signs_is_let_be() -> None:
    with interrupted_if_silent("the quiz", 0.4):
        for stream in (sys.stdout, sys.stderr) * 4:
            time.sleep(0.1)
            print(".", file=stream)


def test_nothing_is_printed_and_the_timer_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before, (left, interval) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with interrupted_if_silent("the quiz", 0.1):
        print("loud")
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGALRM) is before
    rest, again = signal.getitimer(signal.ITIMER_REAL)
    assert rest == pytest.approx(max(0.0, left - 0.2), abs=5), "that of the tests, if there is one"
    assert again == interval


def test_a_timer_from_outside_goes_on() -> None:
    rang: list[float] = []
    timer = signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with interrupted_if_silent("the quiz", 60):
            pass
        time.sleep(1)
        assert [when - began for when in rang] == pytest.approx([0.3], abs=0.25)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with interrupted_if_silent("the quiz", 60):
            time.sleep(0.2)
        time.sleep(0.1)
        assert len(rang) == 2, "it ended within, and rings after"
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_beside_the_main_thread_output_is_swallowed_alone() -> None:
    done = []

    def work() -> None:
        with interrupted_if_silent("the quiz", 0.01):
            time.sleep(0.1)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
