"""What the package adds to the library: time, and memory.

    python benches/overhead.py path/to/resflow [rows]

Compares CPU seconds, which hold on a busy machine, with those of the program that reads the same rows and scores them, so both must be
built in release; and one row with the call into the library alone.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resflow import Flow, ResidualFlow

REPEATS = 3
# the calls with one row
ONE_ROW = 3000


def least(call: Callable[[], object], repeats: int) -> float:
    """The shortest of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def cpu(call: Callable[[], object]) -> float:
    """The least CPU time of several calls, of this process and of those that it starts, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = os.times()
        call()
        end = os.times()
        times.append(sum(end[:4]) - sum(start[:4]))
    return min(times)


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    program, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 10)) @ rng.normal(size=(10, 10))
    estimator = ResidualFlow(steps=20).fit(x[:5000])
    flow: Flow = estimator.flow_
    megabytes = x.nbytes / 1e6

    before = peak()
    flow.log_prob(x)
    print(f"memory: {peak() - before:.0f} MB more at the peak, the table has {megabytes:.0f} MB")

    own = cpu(lambda: flow.log_prob(x))
    scores = cpu(lambda: estimator.score_samples(x))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        np.save(path / "x.npy", x)
        flow.save(path / "model.safetensors")
        arguments = [program, "score", "model.safetensors", "x.npy", "--json"]
        rust = cpu(lambda: subprocess.run(arguments, cwd=path, capture_output=True, check=True))
    print(f"{rows} rows, CPU seconds: Rust {rust:.2f}, Flow.log_prob {own:.2f} ({own / rust:.3f}), score_samples {scores:.2f} ({scores / rust:.3f})")

    one = x[:1]
    # a call takes its samples
    taken = iter([flow._samples(one) for _ in range(ONE_ROW)])
    calls = {
        "the library's call": lambda: flow._model.log_prob(next(taken), None),
        "Flow.log_prob": lambda: flow.log_prob(one),
        "score_samples": lambda: estimator.score_samples(one),
    }
    for name, call in calls.items():
        print(f"one row, {name}: {1e6 * least(call, ONE_ROW):.0f} microseconds")


if __name__ == "__main__":
    main()
