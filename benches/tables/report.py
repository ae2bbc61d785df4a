#!/usr/bin/env python3
"""Writes the results as Markdown: means, paired differences, totals.

    python report.py --data DIR --results RESULTS [--results MORE] [--ours resflow-nsf] > tables.md

Real tables: mean log p of the test rows in nats ± its standard error; more is better. Synthetic tables: KL(p‖model), the mean
of log p(x) − log model(x) over the test rows, ± the standard error of that paired mean; less is better.
"""
import argparse, json, math
from pathlib import Path

import numpy as np

import tables

ORDER = ["gaussian", "gmm-full", "gmm-diag", "kde", "zuko-maf", "zuko-nsf", "zuko-nsf-coupling"]
OBVIOUS = ["gaussian", "gmm-full", "gmm-diag", "kde"]


class Results:
    """Of one table: the lines about fits, and log p of every test row, by method."""

    def __init__(self, data, folders, name):
        self.name, self.meta, self.true = name, tables.meta(data / name), tables.true_log_p(data / name)
        self.lines, self.log_p = {}, {}
        for folder in folders:
            for path in sorted((folder / name).glob("*.json")):
                line = json.loads(path.read_text())
                self.lines[line["method"]] = line
                if path.with_suffix(".npy").exists():
                    self.log_p[line["method"]] = np.load(path.with_suffix(".npy"))

    def best(self, methods):
        methods = [m for m in methods if m in self.log_p]
        return max(methods, key=lambda m: tables.mean_and_error(self.log_p[m])[0], default=None)

    def difference(self, one, other):
        """Mean log p of one above the other's, and the standard error of the mean of paired rows."""
        a, b = self.log_p[one], self.log_p[other]
        if not np.isfinite(a).all() or not np.isfinite(b).all():
            return tables.mean_and_error(a)[0] - tables.mean_and_error(b)[0], 0.0
        return tables.mean_and_error(a - b)

    def cell(self, method):
        if method not in self.lines:
            return ""
        if method not in self.log_p:
            return "failed"
        values = self.log_p[method]
        lost = int((~np.isfinite(values)).sum())
        if lost:
            return f"{'∞' if self.true is not None else '−∞'} ({lost} rows)"
        return with_error(*tables.mean_and_error(values if self.true is None else self.true - values))


def with_error(mean, error):
    if not math.isfinite(mean):
        return "?" if math.isnan(mean) else ("∞" if mean > 0 else "−∞")
    digits = 2 if error <= 0 else min(max(1 - math.floor(math.log10(error)), 0), 4)
    return f"{mean:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def header(cells):
    return "| " + " | ".join(cells) + " |\n|" + "---|" * len(cells)


def overview(results, methods):
    lines = [header(["table", "training rows × columns", *methods])]
    for r in results:
        winner = r.best(methods)
        cells = [f"**{r.cell(m)}**" if m == winner else r.cell(m) for m in methods]
        size = f"{r.meta['train_rows']:,} × {r.meta['columns']}"
        lines.append("| " + " | ".join([r.name, size, *cells]) + " |")
    return "\n".join(lines)


def differences(results, peers, ours):
    lines = [header(["table", *(f"− {p}" for p in peers)])]
    for r in results:
        if ours in r.log_p:
            cells = [with_error(*r.difference(ours, p)) if p in r.log_p else "" for p in peers]
            lines.append("| " + " | ".join([r.name, *cells]) + " |")
    return "\n".join(lines)


def totals(results, ours):
    """Sentences about how often we are ahead, level and behind, one standard error of the paired difference being the measure."""
    lines = []
    rivals = [("the best on test rows of Gaussian, GMM and KDE", OBVIOUS), ("zuko's NSF", ["zuko-nsf"]), ("zuko's coupling NSF", ["zuko-nsf-coupling"]), ("zuko's MAF", ["zuko-maf"])]
    for words, methods in rivals:
        counts, behind = {"ahead": 0, "level": 0, "behind": 0}, []
        for r in results:
            theirs = r.best(methods)
            if ours not in r.log_p or theirs is None:
                continue
            difference, error = r.difference(ours, theirs)
            place = "ahead" if difference > error else "behind" if not difference >= -error else "level"
            counts[place] += 1
            if place == "behind":
                behind.append(f"{r.name} by {with_error(-difference, error)} ({theirs})")
        whole = sum(counts.values())
        if whole == 0:
            continue
        lines.append(f"* Against {words}, on {whole} tables: {counts['ahead']} ahead, {counts['level']} level, {counts['behind']} behind" + (": " + "; ".join(behind) if behind else "") + ".")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, action="append", required=True)
    parser.add_argument("--ours", action="append", help="the methods that the differences are of [default: all of resflow]")
    arguments = parser.parse_args()
    every = [Results(arguments.data, arguments.results, name) for name in tables.names(arguments.data)]
    every = [r for r in every if r.lines]
    found = {m for r in every for m in r.lines}
    peers = [m for m in ORDER if m in found]
    methods = peers + sorted(found - set(peers))
    real, synthetic = [r for r in every if r.true is None], [r for r in every if r.true is not None]
    conditions = sorted({(line["time"], line["threads"]) for r in every for line in r.lines.values()})
    print("Conditions: " + "; ".join(f"{time:g} s on {threads} threads" for time, threads in conditions) + ".\n")
    if real:
        print("## Real tables: mean log p of the test rows, nats\n\n" + overview(real, methods) + "\n")
    if synthetic:
        print("## Synthetic tables: KL divergence from the truth, nats\n\n" + overview(synthetic, methods) + "\n")
    ours = arguments.ours or sorted(m for m in found if m.startswith("resflow-"))
    for method in ours:
        print(f"## {method} against each peer\n")
        print("Differences of mean log p over paired rows, nats; above 0 is better. Level is within one standard error.\n")
        print(totals(every, method) + "\n\n" + differences(every, peers, method) + "\n")

if __name__ == "__main__":
    main()
