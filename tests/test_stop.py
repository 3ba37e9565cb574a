"""Stop (Ctrl-C, Jupyter's button), pressed once or impatiently, by `ranks/notebook/stop.py`."""

from __future__ import annotations

import signal
import time

import pytest

from dlcourse.ranks.notebook import stop
from dlcourse.ranks.notebook.stop import DelayedStop, check


@pytest.fixture(autouse=True)
def handler():
    """As a kernel has it while a cell runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def stopped_block() -> None:
    with pytest.raises(KeyboardInterrupt), DelayedStop():
        press()
        check()


def test_a_press_waits_for_the_next_check_or_the_end():
    stopped_block()
    reached = False
    with pytest.raises(KeyboardInterrupt), DelayedStop():
        press()
        reached = True
    assert reached


def test_the_rest_of_an_impatient_press_does_not_hit_what_is_told_about_it(monkeypatch):
    monkeypatch.setattr(stop, "in_a_kernel", lambda: True)
    stopped_block()
    press()  # the button's second click: the message of the first is being written
    press()
    now = time.monotonic() + 1
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt):
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_press_in_a_block_within_a_block_counts_for_the_outer_one_too(monkeypatch):
    monkeypatch.setattr(stop, "in_a_kernel", lambda: True)
    with pytest.raises(KeyboardInterrupt), DelayedStop():
        stopped_block()
        raise KeyboardInterrupt
    press()


def test_without_a_press_the_handler_is_back_at_once():
    with DelayedStop():
        check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_a_kernel_and_with_another_handler_each_press_after_a_block_counts(monkeypatch):
    """No cell ends there, so the handler would stay, and take a press that belongs to others."""
    stopped_block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(stop, "in_a_kernel", lambda: True)
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    stopped_block()
    press()
    assert heard == [signal.SIGINT]
