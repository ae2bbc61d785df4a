"""What the package adds to the library: time, and memory.

    python benches/overhead.py path/to/resflow [rows]

Compares with the program's own figure for the same call, so both must be built in release. Figures of a machine that does something
else mean nothing; take the ratio, and the least of several.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from resflow import Flow, ResidualFlow

REPEATS = 3


def least(call: object, repeats: int = REPEATS) -> float:
    """The shortest of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
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

    own = least(lambda: flow.log_prob(x))
    scores = least(lambda: estimator.score_samples(x))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        np.save(path / "x.npy", x)
        flow.save(path / "model.safetensors")
        found = []
        for _ in range(REPEATS):
            arguments = [program, "score", "model.safetensors", "x.npy", "--json"]
            done = subprocess.run(arguments, cwd=path, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout)["seconds"])
    rust = min(found)
    print(f"{rows} rows: Rust {rust:.3f} s, Flow.log_prob {own:.3f} s ({own / rust:.3f}), score_samples {scores:.3f} s ({scores / rust:.3f})")

    one = x[:1]
    for name, call in (("Flow.log_prob", flow.log_prob), ("score_samples", estimator.score_samples)):
        for _ in range(100):
            call(one)
        print(f"one row, {name}: {1e6 * least(lambda call=call: call(one), 2000):.0f} microseconds")


if __name__ == "__main__":
    main()
