"""Data and flows that several tests look at."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from resflow import Flow

ROOT = Path(__file__).resolve().parents[2]


# a shell starts what runs in its background with Ctrl-C ignored, and then nobody would hear the interruptions of these tests
signal.signal(signal.SIGINT, signal.default_int_handler)


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    """Correlated rows of three columns, one of them skewed."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 3)) @ np.array([[1.0, 0.0, 0.4], [0.5, 1.0, 0.0], [0.0, 0.3, 2.0]])
    mixed[:, 2] = np.exp(0.4 * mixed[:, 2])
    return mixed


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    return rows_of(300)


@pytest.fixture(scope="session")
def flow(rows: np.ndarray) -> Flow:
    return Flow.fit(rows, steps=60, seed=5)


@pytest.fixture(scope="session")
def conditional() -> Flow:
    rng = np.random.default_rng(3)
    given = rng.uniform(-1, 1, size=(400, 2))
    x = np.column_stack([given[:, 0] + 0.3 * rng.normal(size=400), given[:, 1] * rng.normal(size=400)])
    return Flow.fit(x, given=given, steps=60, precision="f64")


@pytest.fixture(scope="session")
def program() -> str:
    """The program `resflow`; it is built with the library, so not where only the wheel is."""
    named = os.environ.get("RESFLOW_PROGRAM")
    built = [ROOT / "target" / profile / "resflow" for profile in ("release", "debug")]
    found = named or next((str(path) for path in built if path.exists()), None) or shutil.which("resflow")
    if found is None:
        assert not os.environ.get("CI"), "RESFLOW_PROGRAM names the program that results are compared with"
        pytest.skip("the program is not built: cargo build -p resflow-cli")
    return found
