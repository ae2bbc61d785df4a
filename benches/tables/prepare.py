#!/usr/bin/env python3
"""Prepares the tables that the benchmark is about: real ones out of packages, synthetic ones of known entropy.

    python prepare.py --out DIR [--only wine,rings-2] [--overwrite]

The split, the dequantisation and the synthetic rows are functions of a table's name alone. Of a real table a fifth is held
out, at most 10,000 rows; of a synthetic one as many fresh rows are drawn, at least 2,000.

Grids and integers are dequantised here, once: a column whose values are whole multiples of a step s becomes x + s·u with u
uniform on [0, 1). In a column that repeats values on no grid, or on one so fine that it is nearly empty, each value is spread up to the
next one: a density has no bound at a point mass. So every method is judged on the same continuous numbers, none gains by finding the grid, and
E log p(x + s·u) + log s is a bound from below on the log probability of the cell.
"""
import argparse, json, shutil, zlib
from pathlib import Path

import numpy as np
import pandas as pd

import real, synthetic
from tables import read

MOST_ROWS = 50_000
MOST_TEST_ROWS = 10_000
LEAST_SYNTHETIC_TEST_ROWS = 2_000


def generator(name, purpose):
    return np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(purpose.encode())])


def grid_step(values):
    """The step of the coarsest grid that all values are on, within 10^7 steps of the range: a multiple of a power of ten, or the
    least gap between values (a grid in other units than it was measured in). None if there is none."""
    span = np.ptp(values)
    gaps = np.diff(np.unique(values))
    for unit in [*(10.0**power for power in range(8, -13, -1)), gaps.min()]:
        # numbers that have been single precision are off their grid by a little
        tolerance = 1e-3 if span / unit < 1e4 else 1e-6
        if not 1 <= span / unit <= 1e7:
            continue
        steps = (values - values.min()) / unit
        whole = np.round(steps)
        if np.abs(steps - whole).max() < tolerance:
            return float(f"{np.gcd.reduce(whole.astype(np.int64)) * unit:.9g}")
    return None


def dequantise(frame, rng):
    """Continuous columns; the step of each that was on a grid; those whose values were spread up to the next one."""
    grids, spread, out = {}, [], {}
    for column in frame.columns:
        values = frame[column].to_numpy()
        distinct = np.unique(values)
        noise = rng.random(len(values))
        step = grid_step(values)
        commonest = np.unique(values, return_counts=True)[1].max() / len(values)
        is_empty = step is not None and len(distinct) * step < 0.01 * np.ptp(values)
        if step is not None and not (is_empty and commonest > 0.01):
            grids[column] = step
            out[column] = values + step * noise
        elif commonest > 0.01 or len(distinct) < 0.9 * len(values):
            spread.append(column)
            gaps = np.diff(distinct)
            widths = np.append(gaps, np.median(gaps))
            out[column] = values + widths[np.searchsorted(distinct, values)] * noise
        else:
            out[column] = values
    return pd.DataFrame(out), grids, spread


def prepare_real(name, folder):
    frame, notes = real.load(name, MOST_ROWS, generator(name, "rows"))
    repeated = int(frame.duplicated().sum())
    commonest = {c: float(frame[c].value_counts(normalize=True).iloc[0]) for c in frame.columns}
    frame, grids, spread = dequantise(frame, generator(name, "noise"))
    order = generator(name, "split").permutation(len(frame))
    held_out = min(len(frame) // 5, MOST_TEST_ROWS)
    test, train = frame.iloc[order[:held_out]], frame.iloc[order[held_out:]]
    write(folder, "test", test)
    write(folder, "train", train)
    return {
        "kind": "real",
        **notes,
        "columns": len(frame.columns),
        "train_rows": len(train),
        "test_rows": len(test),
        "grids": grids,
        "spread_columns": spread,
        "repeated_rows": repeated,
        "share_of_commonest_value": {c: round(s, 4) for c, s in commonest.items() if s > 0.05},
    }


def prepare_synthetic(name, folder):
    rows, special, maker = synthetic.TABLES[name]
    density = maker(generator(name, "density"))
    held_out = min(max(rows // 5, LEAST_SYNTHETIC_TEST_ROWS), MOST_TEST_ROWS)
    columns = [f"x{i + 1}" for i in range(density.columns)]
    write(folder, "train", pd.DataFrame(density.sample(rows, generator(name, "train")), columns=columns), digits=9)
    write(folder, "test", pd.DataFrame(density.sample(held_out, generator(name, "test")), columns=columns), digits=9)
    # of the numbers as they are in the file
    log_p = density.log_density(read(folder, "test"))
    np.save(folder / "test_log_p.npy", log_p)
    value, error, how = synthetic.entropy(density, generator(name, "entropy"))
    return {
        "kind": "synthetic",
        "source": "synthetic.py",
        "special": special,
        "columns": density.columns,
        "train_rows": rows,
        "test_rows": held_out,
        "entropy": value,
        "entropy_se": error,
        "entropy_by": how,
        "test_mean_log_p": float(log_p.mean()),
    }


def write(folder, part, frame, digits=None):
    frame.to_csv(folder / f"{part}.csv", index=False, float_format=None if digits is None else f"%.{digits}g")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="names of tables, comma-separated")
    parser.add_argument("--overwrite", action="store_true", help="prepare again what is there")
    arguments = parser.parse_args()
    every = [*real.TABLES, *synthetic.TABLES]
    wanted = arguments.only.split(",") if arguments.only else every
    unknown = [name for name in wanted if name not in every]
    if unknown:
        raise SystemExit(f"no such table: {', '.join(unknown)}; there are {', '.join(every)}")
    for name in wanted:
        folder = arguments.out / name
        if (folder / "meta.json").exists() and not arguments.overwrite:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        notes = (prepare_real if name in real.TABLES else prepare_synthetic)(name, folder)
        # the last file: a table that has it is complete
        (folder / "meta.json").write_text(json.dumps({"name": name, "order": every.index(name), **notes}, indent=1) + "\n")
        print(f"{name}: {notes['train_rows']} + {notes['test_rows']} rows × {notes['columns']} columns", flush=True)


if __name__ == "__main__":
    main()
