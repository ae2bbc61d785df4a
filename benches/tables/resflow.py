#!/usr/bin/env python3
"""Fits this library's program to the prepared tables, as a user would, and scores the test rows.

    python resflow.py --resflow PATH --data DIR --out RESULTS --time 60 --threads 2 [--models residual,nsf,auto] [--only wine]

For each table and model it runs

    resflow fit train.csv --model M --time-limit 60 --threads 2 --out RUN
    resflow score RUN test.csv --threads 2 --out scores.csv

and writes the lines that peers.py writes. The model `default` is a fit without --model. What is there is skipped.
"""
import argparse, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd

import tables


def run(command):
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resflow", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where results go [default: results in DATA]")
    parser.add_argument("--time", type=float, default=60.0, help="seconds for each fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default="residual,nsf,auto")
    parser.add_argument("--only", help="names of tables, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="", help="put behind the method's name, to compare two versions")
    parser.add_argument("--fit-flag", action="append", default=[], help="a further argument of `resflow fit`, as --fit-flag=--FLAG")
    arguments = parser.parse_args()
    out = arguments.out or arguments.data / "results"
    for table in tables.names(arguments.data, arguments.only):
        for model in arguments.models.split(","):
            method = f"resflow-{model}{arguments.label}"
            if not tables.is_done(out, table, method):
                measure(arguments, out, table, model, method)


def measure(arguments, out, table, model, method):
    folder = arguments.data / table
    conditions = {"time": arguments.time, "threads": arguments.threads, "seed": arguments.seed}
    with tempfile.TemporaryDirectory() as scratch:
        directory, scores = Path(scratch) / "run", Path(scratch) / "scores.csv"
        chosen = [] if model == "default" else ["--model", model]
        fit = [arguments.resflow, "fit", folder / "train.csv", *chosen, "--time-limit", f"{arguments.time:g}"]
        fit += ["--threads", arguments.threads, "--seed", arguments.seed, "--out", directory, *arguments.fit_flag]
        fitted, seconds = run(fit)
        if fitted.returncode == 0:
            score = [arguments.resflow, "score", directory, folder / "test.csv", "--threads", arguments.threads, "--out", scores]
            scored, score_seconds = run(score)
        # what was said, and the course of the training, for whoever asks why
        kept = Path(out) / table / f"{method}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(fitted.stdout + fitted.stderr)
        metrics = directory / "metrics.jsonl"
        if metrics.exists():
            kept.with_suffix(".metrics.jsonl").write_bytes(metrics.read_bytes())
        failed = fitted if fitted.returncode != 0 else scored
        if failed.returncode != 0:
            message = failed.stderr.strip()[-2000:]
            print(f"{table}, {method}: {message}", file=sys.stderr)
            tables.record_failure(out, table, method, seconds, message, **conditions)
            return
        frame = pd.read_csv(scores)
        tables.record(
            out, table, method, seconds, frame["log_prob"].to_numpy(dtype=np.float64), **conditions,
            score_seconds=round(score_seconds, 2), mean_row_error=float(frame["se"].mean()) if "se" in frame else 0.0,
        )


if __name__ == "__main__":
    main()
