#!/usr/bin/env python3
"""Fits what people use today to the prepared tables, each method for the same time, and scores the test rows.

    python peers.py --data DIR --out RESULTS --time 60 --threads 2 [--only wine,digits] [--methods nsf,maf]

One JSON line a fit; log p of every test row is stored beside it. What is there already is skipped, so that the command can be
interrupted and given again.
"""
import argparse, os, sys, time
from functools import partial
from pathlib import Path

METHODS = ["gaussian", "gmm-full", "gmm-diag", "kde", "nsf", "maf", "nsf-coupling"]
NAMES = {"nsf": "zuko-nsf", "maf": "zuko-maf", "nsf-coupling": "zuko-nsf-coupling"}


def load_fitters():
    """Functions of the training rows, a time and a seed, by method."""
    import classical, flows

    return {
        "gaussian": classical.gaussian,
        "gmm-full": partial(classical.mixture, "full"),
        "gmm-diag": partial(classical.mixture, "diag"),
        "kde": classical.kernels,
        **{kind: partial(flows.fit, kind) for kind in ("nsf", "maf", "nsf-coupling")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where results go [default: results in DATA]")
    parser.add_argument("--time", type=float, default=60.0, help="seconds for each fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="names of tables, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise SystemExit(f"no such method: {', '.join(unknown)}; there are {', '.join(METHODS)}")
    # before numpy and torch are loaded, which read them once
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    import torch

    import flows, tables

    fitters, warm = load_fitters(), False
    torch.set_num_threads(arguments.threads)
    out = arguments.out or arguments.data / "results"
    for table in tables.names(arguments.data, arguments.only):
        left = [m for m in methods if not tables.is_done(out, table, NAMES.get(m, m))]
        if not left:
            continue
        folder = arguments.data / table
        if any(m in NAMES for m in left) and not warm:
            flows.warm_up()
            warm = True
        train, test = tables.read(folder, "train"), tables.read(folder, "test")
        for method in left:
            name = NAMES.get(method, method)
            conditions = {"time": arguments.time, "threads": arguments.threads, "seed": arguments.seed}
            start = time.perf_counter()
            try:
                log_p, notes = fitters[method](train, arguments.time, arguments.seed)
                seconds = time.perf_counter() - start
                values = log_p(test)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                print(f"{table}, {method}: {error}", file=sys.stderr)
                tables.record_failure(out, table, name, time.perf_counter() - start, str(error), **conditions)
                continue
            scoring = round(time.perf_counter() - start - seconds, 2)
            tables.record(out, table, name, seconds, values, **conditions, score_seconds=scoring, **notes)


if __name__ == "__main__":
    main()
