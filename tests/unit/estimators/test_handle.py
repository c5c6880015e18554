"""The handle of a fit that runs in another thread; without a session."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from hvdspark.errors import FitCancelledError, PreemptedError
from hvdspark.estimators import handle as module
from hvdspark.estimators.handle import FitControl, FitHandle
from hvdspark.events import FitStarted, PhaseStarted

WAIT_S = 20.0


class Fits:
    """Starts handles whose fits are functions, and counts how often jobs are cancelled."""

    def __init__(self) -> None:
        self.tags: list[str] = []
        self.cancelled = threading.Event()

    def start(self, fit: Callable[[FitControl], Any]) -> FitHandle[Any]:
        return FitHandle(None, fit)  # type: ignore[arg-type]

    def cancel_jobs(self, spark: Any, tag: str) -> None:
        self.tags.append(tag)
        if len(self.tags) >= 2:  # a job that began after the first word is found by the next
            self.cancelled.set()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    fits = Fits()
    monkeypatch.setattr(module, "_thread", lambda spark, run: threading.Thread(target=run))
    monkeypatch.setattr(module, "interruptible", lambda spark, body, tag: body())
    monkeypatch.setattr(module, "cancel_jobs", fits.cancel_jobs)
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    return fits


def test_the_model_when_there_is_one(fits: Fits) -> None:
    go = threading.Event()
    handle = fits.start(lambda control: go.wait(WAIT_S) and "model")
    assert handle.running()
    assert not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    called: list[Any] = []
    handle.add_done_callback(called.append)
    go.set()
    assert handle.result(timeout=WAIT_S) == "model"
    assert handle.exception() is None
    assert handle.done()
    assert not handle.cancelled()
    assert handle.cancel() is False, "there is nothing left to end"
    handle.add_done_callback(called.append)
    assert called == [handle, handle]
    assert handle.status.state == "finished"
    assert fits.tags == []


def test_the_error_of_the_fit(fits: Fits) -> None:
    def fit(control: FitControl) -> None:
        raise ValueError("the user's own")

    handle = fits.start(fit)
    with pytest.raises(ValueError, match="own"):
        handle.result(WAIT_S)
    assert isinstance(handle.exception(), ValueError)
    assert handle.status.state == "failed"


def test_a_cancelled_fit_says_so_whatever_it_failed_with(fits: Fits) -> None:
    def fit(control: FitControl) -> None:
        assert fits.cancelled.wait(WAIT_S)
        raise RuntimeError("job 3 was cancelled")

    handle = fits.start(fit)
    assert handle.cancel() is True
    with pytest.raises(FitCancelledError) as caught:
        handle.result(WAIT_S)
    assert isinstance(caught.value, CancelledError)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert handle.cancelled()
    assert handle.status.state == "cancelled"
    assert len(set(fits.tags)) == 1


def test_a_cancelled_fit_waits_for_nothing_any_more(fits: Fits) -> None:
    waiting, left = threading.Event(), threading.Event()

    def fit(control: FitControl) -> None:
        with control.preemption.told_to(lambda reason: left.set()):
            waiting.set()
            assert left.wait(WAIT_S)
        raise PreemptedError("before they were started")

    handle = fits.start(fit)
    assert waiting.wait(WAIT_S)
    handle.cancel()
    with pytest.raises(FitCancelledError):
        handle.result(WAIT_S)


def test_a_preempted_fit(fits: Fits) -> None:
    asked = threading.Event()

    def fit(control: FitControl) -> None:
        with control.preemption.told_to(lambda reason: asked.set()):
            assert asked.wait(WAIT_S)
        raise PreemptedError("stopped", run_id="mine")

    handle = fits.start(fit)
    handle.preempt()
    with pytest.raises(PreemptedError) as caught:
        handle.result(WAIT_S)
    assert caught.value.run_id == "mine"
    assert handle.status.state == "preempted"
    assert not handle.cancelled()
    assert fits.tags == [], "nobody is killed"


def test_the_status_is_that_of_the_events(fits: Fits) -> None:
    told, go = threading.Event(), threading.Event()

    def fit(control: FitControl) -> None:
        control.status.on_event(FitStarted("e", {}, ("x",), ("y",), None, 2, run_id="e-1"))
        control.status.on_event(PhaseStarted("materialize"))
        told.set()
        go.wait(WAIT_S)

    handle = fits.start(fit)
    assert handle.status.state in ("checking", "materialising")
    assert told.wait(WAIT_S)
    assert (handle.status.state, handle.status.run_id) == ("materialising", "e-1")
    assert repr(handle).startswith("<FitHandle of e-1: materialising for")
    go.set()
    handle.result(WAIT_S)


def test_an_interrupt_while_waiting_cancels_and_waits_for_the_end(fits: Fits) -> None:
    def fit(control: FitControl) -> None:
        assert fits.cancelled.wait(WAIT_S)
        raise RuntimeError("cancelled")

    handle = fits.start(fit)
    interrupter = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        handle.result(WAIT_S)
    assert handle.cancelled(), "it has cleaned up behind itself when the interrupt is passed on"
