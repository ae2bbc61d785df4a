#!/usr/bin/env python3
"""Predictions of one column given others: this library's conditional flows beside gradient boosting.

    python regression.py --resflow PATH --out RESULTS [--only diabetes] [--seeds 1,2,3]

Each table is split anew by each seed, four fifths for training. It fits scikit-learn's histogram gradient boosting, a model for each of 64
quantiles, and NGBoost with a normal distribution; both stop early by a tenth of the training rows. Then

    resflow fit train.csv --given … --steps N --threads 1 --out RUN
    resflow predict RUN test.csv --out predicted.csv

with as many steps as take the CPU time of the 64 quantiles, at least a minute of them (how long a step takes is found by two short fits), so
that the comparison holds on a busy machine too; the flow stops early by itself. Printed are the mean CRPS (the column's units, less is better; by the
same 64 levels, of NGBoost by its formula) and the mean negative log density in nats, with standard errors over the test rows of all
seeds. What is predicted is spread over the step of its grid first, so that it has a density. Quantiles have none.
"""
import argparse, json, math, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

# one thread of everything, so that CPU time is time
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor

import real

LEVELS = (np.arange(64) + 0.5) / 64


def diabetes():
    from sklearn import datasets

    found = datasets.load_diabetes(as_frame=True, scaled=False)
    return found.data.assign(progression=found.target)


# name: (loader, what is predicted, columns that are left out)
TABLES = {
    "diabetes": (diabetes, "progression", []),
    "penguins": (real.palmerpenguins, "body_mass_g", ["species", "island", "sex", "year"]),
    "txhousing": (lambda: real.plotnine("txhousing"), "median", ["city", "date"]),
    "diamonds": (lambda: real.plotnine("diamonds"), "price", ["cut", "color", "clarity"]),
}
MOST_ROWS = 10_000


def load(name, rng):
    loader, target, unwanted = TABLES[name]
    frame = loader().drop(columns=unwanted)
    frame = frame[[c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]].astype(float).dropna()
    if len(frame) > MOST_ROWS:
        frame = frame.iloc[rng.choice(len(frame), MOST_ROWS, replace=False)]
    steps = np.diff(np.unique(frame[target]))
    frame[target] += rng.uniform(0, steps.min(), len(frame))
    order = rng.permutation(len(frame))
    held_out = len(frame) // 5
    return frame.iloc[order[held_out:]], frame.iloc[order[:held_out]], target


def pinball(quantiles, y):
    """Twice the mean pinball loss: the CRPS by the midpoint rule."""
    quantiles = np.sort(quantiles, axis=1)
    below = (y[:, None] <= quantiles).astype(float)
    return 2 * np.mean((below - LEVELS) * (quantiles - y[:, None]), axis=1)


def boosting(train, test, target, seed):
    x, y = train.drop(columns=target), train[target]
    found = []
    for level in LEVELS:
        how = dict(loss="quantile", quantile=level, early_stopping=True, validation_fraction=0.1, max_iter=1000, random_state=seed)
        found.append(HistGradientBoostingRegressor(**how).fit(x, y).predict(test.drop(columns=target)))
    return pinball(np.stack(found, axis=1), test[target].to_numpy()), None


def ngboost(train, test, target, seed):
    from ngboost import NGBRegressor

    x, y = train.drop(columns=target).to_numpy(), train[target].to_numpy()
    # in standard units, in which its first steps are of a size that fits
    centre, scale = y.mean(), y.std()
    model = NGBRegressor(n_estimators=2000, learning_rate=0.02, verbose=False, random_state=seed, validation_fraction=0.1, early_stopping_rounds=50)
    model.fit(x, (y - centre) / scale)
    predicted = model.pred_dist(test.drop(columns=target).to_numpy())
    mean, deviation = predicted.params["loc"], predicted.params["scale"]
    z = ((test[target].to_numpy() - centre) / scale - mean) / deviation
    crps = deviation * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    return scale * crps, -stats.norm.logpdf(z) + np.log(deviation * scale)


def children():
    """CPU seconds of the programs that were run."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def flow(arguments, train, test, target, seed, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        train.to_csv(scratch / "train.csv", index=False)
        test.to_csv(scratch / "test.csv", index=False)
        given = ",".join(c for c in train.columns if c != target)

        def run(*command):
            command, before = [str(part) for part in (arguments.resflow, *command, "--threads", 1)], children()
            done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            return children() - before

        fit = ["fit", "train.csv", "--given", given, "--seed", seed, "--overwrite", "--out", "run", "--steps"]
        short, longer = (run(*fit, steps) for steps in (100, 500))
        run(*fit, max(500, int(100 + 400 * (seconds - short) / (longer - short))))
        run("predict", "run", "test.csv", "--out", "predicted.csv")
        frame = pd.read_csv(scratch / "predicted.csv")
        return frame["crps"].to_numpy(), -frame["log_prob"].to_numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resflow", type=lambda p: Path(p).resolve(), required=True, help="the program")
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is there is not computed again")
    parser.add_argument("--only", help="names of tables, comma-separated")
    parser.add_argument("--seeds", default="1,2,3")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    methods = {
        "boosted quantiles": boosting,
        "NGBoost, normal": ngboost,
        "resflow": lambda *a: flow(arguments, *a, max(60.0, boosted[a[-1]])),
    }
    print("| table, column | method | CRPS | −log p, nats | CPU seconds a fit |\n|---|---|---|---|---|")
    for name in (arguments.only or ",".join(TABLES)).split(","):
        # the CPU seconds of each seed's quantiles
        boosted = {}
        for method, predict in methods.items():
            scores, densities, seconds = [], [], []
            for seed in map(int, arguments.seeds.split(",")):
                kept = arguments.out / f"{name}-{method.replace(' ', '-').replace(',', '')}-{seed}.json"
                if not kept.exists():
                    train, test, target = load(name, np.random.default_rng(seed))
                    start = time.process_time() + children()
                    crps, density = predict(train, test, target, seed)
                    found = {"crps": crps.tolist(), "density": None if density is None else density.tolist(), "seconds": time.process_time() + children() - start}
                    kept.write_text(json.dumps(found))
                found = json.loads(kept.read_text())
                scores += found["crps"]
                densities += found["density"] or []
                seconds.append(found["seconds"])
                if method == "boosted quantiles":
                    boosted[seed] = found["seconds"]
            def told(values):
                return f"{np.mean(values):.4g} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2g}" if values else "–"
            print(f"| {name}, {TABLES[name][1]} | {method} | {told(scores)} | {told(densities)} | {np.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
