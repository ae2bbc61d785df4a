"""Rows with missing cells."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest

from resflow import Flow

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def holes() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 1.0]])
    gone = rng.uniform(size=x.shape) < 0.2
    # a row of which nothing was seen says nothing, and is refused
    gone[gone.all(1), 0] = False
    x[gone] = np.nan
    return x


@pytest.fixture(scope="module")
def filled(holes: np.ndarray) -> Flow:
    return Flow.fit(pd.DataFrame(holes, columns=NAMES), missing=True, steps=150)


def test_rows_with_missing_cells_have_densities(filled: Flow, holes: np.ndarray) -> None:
    log_prob, error = filled.log_prob(holes, return_standard_error=True)
    assert np.isfinite(log_prob).all()
    gone = np.isnan(holes)
    partly = gone.any(1) & ~gone.all(1)
    assert error[partly].any() and not error[~gone.any(1)].any()
    # nothing seen: the density of nothing
    assert filled.log_prob(np.full((1, 3), np.nan))[0] == pytest.approx(0.0, abs=1e-9)
    assert np.array_equal(pickle.loads(pickle.dumps(filled)).log_prob(holes), log_prob)


def test_missing_cells_are_filled_in(filled: Flow, holes: np.ndarray) -> None:
    drawn = filled.impute(holes, 5)
    assert drawn.shape == (2000, 3) and np.isfinite(drawn).all()
    seen = ~np.isnan(holes)
    again = drawn.reshape(400, 5, 3)
    assert all(np.array_equal(again[:, j][seen], holes[seen]) for j in range(5))
    assert np.array_equal(filled.impute(holes, 5), drawn)
    assert not np.array_equal(filled.impute(holes, 5, seed=1), drawn)
    means = filled.impute(holes, 5, statistic="mean")
    assert np.allclose(means, again.mean(1))
    assert filled.impute(holes, 5, statistic="median").shape == (400, 3)
    # b is 0.9 a with little beside
    only = np.array([[2.0, np.nan, 0.0], [-2.0, np.nan, 0.0]])
    high, low = filled.impute(only, 64, statistic="mean")[:, 1]
    assert high > 0.6 and low < -0.6
    with pytest.raises(ValueError, match="statistic"):
        filled.impute(only, 2, statistic="mode")


def test_both_flows_are_watched(holes: np.ndarray) -> None:
    seen = []
    Flow.fit(holes, missing=True, steps=4, callback=lambda progress: seen.append((progress.imputing, progress.step)))
    assert seen == [(True, step) for step in range(1, 5)] + [(False, step) for step in range(1, 5)]


def test_frames_bring_their_missing_cells(filled: Flow, holes: np.ndarray) -> None:
    frame = pd.DataFrame(holes, columns=NAMES)
    expected = filled.log_prob(holes)
    for same in (frame, frame.astype("Float64"), pl.from_pandas(frame), pl.from_pandas(frame).fill_nan(None)):
        assert np.array_equal(filled.log_prob(same), expected)
    assert Flow.fit(pl.from_pandas(frame), missing=True, steps=5).to_bytes() == Flow.fit(
        frame, missing=True, steps=5
    ).to_bytes()


def test_others_refuse_them(flow: Flow, holes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="missing|NaN"):
        Flow.fit(holes, steps=2)
    with pytest.raises(ValueError, match="missing|NaN"):
        flow.log_prob(holes)
    with pytest.raises(ValueError):
        flow.impute(holes)
