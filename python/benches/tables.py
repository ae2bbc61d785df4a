"""The tables of benches/tables through the package: the figures are the program's, digit for digit.

    python benches/tables.py --resflow PATH --data DIR [--steps 300] [--models residual,nsf] [--only wine]

DIR is what benches/tables/prepare.py makes. Each table is fitted by both for so many steps and its test rows are scored by both; a
difference in any bit ends the run with an error. A table without names of columns has none here either.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from resflow import Flow


class Named:
    """Rows under the names of their columns."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        self.columns = rows[0]
        self.values = np.array(rows[1:], dtype=np.float64)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.values


def program(path: Path, *arguments: object) -> None:
    """Runs the program, and ends with what it said if it fails."""
    done = subprocess.run([str(path), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resflow", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--models", default="residual,nsf")
    parser.add_argument("--only", default="", help="tables, by name")
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.only.split(",")))
    print("| table | model | test rows | program, nats | package, nats | same bits |\n|---|---|---|---|---|---|")
    different = 0
    for folder in sorted(path for path in arguments.data.iterdir() if (path / "train.csv").exists()):
        if wanted and folder.name not in wanted:
            continue
        train, test = Named(folder / "train.csv"), Named(folder / "test.csv")
        for model in arguments.models.split(","):
            with tempfile.TemporaryDirectory() as scratch:
                run, scores = Path(scratch) / "run", Path(scratch) / "scores.csv"
                program(arguments.resflow, "fit", folder / "train.csv", "--model", model, "--steps", arguments.steps, "--out", run)
                program(arguments.resflow, "score", run, folder / "test.csv", "--out", scores)
                with scores.open(newline="") as file:
                    theirs = np.array([float(row["log_prob"]) for row in csv.DictReader(file)])
            flow = Flow.fit(train, family=model, steps=arguments.steps)
            ours = flow.log_prob(test, seed=0)
            same = np.array_equal(ours, theirs)
            different += not same
            print(f"| {folder.name} | {model} | {len(ours)} | {theirs.mean():.6f} | {ours.mean():.6f} | {'yes' if same else 'NO'} |")
    if different:
        sys.exit(f"{different} fits differ")


if __name__ == "__main__":
    main()
