"""Fits that are watched, stopped and interrupted."""

from __future__ import annotations

import _thread
import gc
import signal
import threading
import time
import weakref

import numpy as np
import pytest

from resflow import Flow, Progress

LONG = 1_000_000


def interrupt_soon(seconds: float = 0.5) -> threading.Timer:
    """Sends Ctrl-C to this process after some time."""
    timer = threading.Timer(seconds, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    return timer


# without early stopping, so that nothing but the interruption ends it
ENDLESS = {"patience": 0}


def test_a_callback_sees_every_step_and_may_stop(rows: np.ndarray) -> None:
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return progress.step < 12

    flow = Flow.fit(rows, steps=LONG, callback=watch)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert flow.inspect()["provenance"]["steps"] <= 12
    validated = [progress for progress in seen if progress.validation_nll is not None]
    assert validated and all(progress.validation_standard_error > 0 for progress in validated)
    assert all(np.isfinite(progress.train_nll) and progress.learning_rate > 0 for progress in seen)


def test_a_watched_fit_is_the_same_fit(rows: np.ndarray, flow: Flow) -> None:
    watched = Flow.fit(rows, steps=60, seed=5, callback=lambda progress: None)
    assert watched.to_bytes() == flow.to_bytes()


def test_exceptions_of_a_callback_are_raised(rows: np.ndarray) -> None:
    def watch(progress: Progress) -> None:
        if progress.step == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        Flow.fit(rows, steps=LONG, callback=watch)


def test_control_c_is_raised(rows: np.ndarray) -> None:
    timer = interrupt_soon()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Flow.fit(rows, steps=LONG, train=ENDLESS)
    timer.join()
    assert time.monotonic() - start < 30


def test_control_c_is_heard_before_the_first_step() -> None:
    # the search for a mixture of so many rows takes longer than the timer, and far longer than what is left of it
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, size=(20_000, 12)) @ rng.normal(size=(12, 12))
    seen: list[Progress] = []
    timer = interrupt_soon(0.4)
    with pytest.raises(KeyboardInterrupt):
        Flow.fit(x, steps=LONG, train=ENDLESS, callback=seen.append)
    timer.join()
    assert not seen


def test_control_c_may_end_a_fit_with_its_best_model(rows: np.ndarray) -> None:
    timer = interrupt_soon()
    flow = Flow.fit(rows, steps=LONG, train=ENDLESS, on_interrupt="return")
    timer.join()
    assert np.isfinite(flow.log_prob(rows)).all()
    # exceptions of a callback are not Ctrl-C
    with pytest.raises(ZeroDivisionError):
        Flow.fit(rows, steps=LONG, callback=lambda progress: 1 // 0, on_interrupt="return")


def test_nothing_is_left_of_what_was_interrupted(rows: np.ndarray) -> None:
    class Watch:
        def __call__(self, progress: Progress) -> None:
            if progress.step == 2:
                _thread.interrupt_main()

    before = threading.active_count()
    watch = Watch()
    alive = weakref.ref(watch)
    with pytest.raises(KeyboardInterrupt):
        Flow.fit(rows, steps=LONG, train=ENDLESS, callback=watch)
    del watch
    gc.collect()
    assert alive() is None and threading.active_count() == before
    # and the next fit is none the wiser
    assert np.isfinite(Flow.fit(rows, steps=3).log_prob(rows)).all()


def test_the_interpreter_goes_on_while_a_flow_computes(rows: np.ndarray) -> None:
    flow = Flow.fit(rows, steps=3)
    many = np.tile(rows, (2000, 1))
    done = threading.Event()
    ticks = 0

    def compute() -> None:
        flow.log_prob(many)
        done.set()

    worker = threading.Thread(target=compute)
    worker.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.001)
    worker.join()
    assert ticks > 20


def test_a_fit_in_a_thread_ends_with_it(rows: np.ndarray) -> None:
    found: list[Flow] = []
    worker = threading.Thread(target=lambda: found.append(Flow.fit(rows, steps=20)))
    worker.start()
    worker.join()
    assert found[0].to_bytes() == Flow.fit(rows, steps=20).to_bytes()
