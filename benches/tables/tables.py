"""Prepared tables and results on disk: a folder a table, a file a result.

    DATA/NAME/train.csv, test.csv, meta.json            the table; the test rows are never seen in a fit
    DATA/NAME/test_log_p.npy                            exact log p of the test rows, for synthetic tables
    RESULTS/NAME/METHOD.json, METHOD.npy                one line about a fit, and log p of every test row

log p is in nats, of densities in the data's own units.
"""
import json, math, os
from pathlib import Path

import numpy as np
import pandas as pd


def names(data, only=None):
    """The names of the prepared tables in their order, or those of `only` (comma-separated)."""
    found = sorted((p.parent for p in Path(data).glob("*/meta.json")), key=lambda p: (meta(p)["order"], p.name))
    found = [p.name for p in found]
    if only is None:
        return found
    wanted = only.split(",")
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise SystemExit(f"no such table in {data}: {', '.join(unknown)}; there are {', '.join(found)}")
    return [name for name in found if name in wanted]


def meta(folder):
    return json.loads((Path(folder) / "meta.json").read_text())


def read(folder, part):
    """The rows of `train` or `test`, in double precision."""
    return pd.read_csv(Path(folder) / f"{part}.csv", dtype=np.float64).to_numpy()


def true_log_p(folder):
    """Exact log p of the test rows, or None for a real table."""
    path = Path(folder) / "test_log_p.npy"
    return np.load(path) if path.exists() else None


def is_done(out, table, method):
    return (Path(out) / table / f"{method}.json").exists()


def mean_and_error(values):
    """Mean and standard error; −∞ and 0 if any value is not finite."""
    if len(values) == 0 or not np.isfinite(values).all():
        return -math.inf, 0.0
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def record(out, table, method, seconds, log_p, **more):
    """Stores log p of the test rows and prints the line about the fit. NaN counts as −∞: no density is an answer."""
    log_p = np.where(np.isnan(log_p), -np.inf, np.asarray(log_p, dtype=np.float64))
    mean, error = mean_and_error(log_p)
    line = {
        "table": table,
        "method": method,
        "seconds": round(seconds, 2),
        "mean_log_p": mean if math.isfinite(mean) else None,
        "standard_error": error,
        "rows": len(log_p),
        "non_finite_rows": int((~np.isfinite(log_p)).sum()),
        **more,
    }
    write(out, table, method, line, log_p)


def record_failure(out, table, method, seconds, message, **more):
    """Stores that a method gave no density, and why."""
    line = {"table": table, "method": method, "seconds": round(seconds, 2), "mean_log_p": None, "failed": message, **more}
    write(out, table, method, line, None)


def write(out, table, method, line, log_p):
    folder = Path(out) / table
    folder.mkdir(parents=True, exist_ok=True)
    if log_p is not None:
        np.save(folder / f"{method}.npy", log_p)
    # the line comes last and at once: what has one is complete, should the work be interrupted
    unfinished = folder / f"{method}.json.tmp"
    unfinished.write_text(json.dumps(line) + "\n")
    os.replace(unfinished, folder / f"{method}.json")
    print(json.dumps(line), flush=True)
