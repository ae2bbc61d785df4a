#!/usr/bin/env python3
"""Runs this library and its peer by turns for so many minutes, and prints medians of both and of their ratio as Markdown.

    cargo build --release --example throughput
    peer/bin/python benches/peer/alternate.py --minutes 60 [--products f32 bf16x6 bf16x3] [--only toy tabular conv] [--log turns.jsonl]

On a shared machine single runs mean little; what disturbs one of two neighbours disturbs the other. A turn is one run of each arithmetic and one
of the peer, one thread each, every second one in reverse order; the workload that has had the least time has the next. Ratios are of runs of
the same turn; ± is half of the range of the middle half of them. Errors of inversion are the largest round trip's, ours in standard deviations of the data,
which are about 1, the peer's in units of them; of images ours is the largest residual of a block, which is no round trip. `--log` keeps every turn, and what it holds already is counted too: begin a new one for another build.
"""
import argparse, json, os, subprocess, sys, time
from pathlib import Path
import numpy as np

HERE = Path(__file__).resolve().parent
WORKLOADS = ["toy", "tabular", "conv"]


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode} and {'no ' if not done.stdout.strip() else ''}output")
    return json.loads(done.stdout.splitlines()[-1])


def number(x):
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def table(turns):
    """Training by each arithmetic, log p and each inversion, by workload."""
    for workload in WORKLOADS:
        own = [t["runs"] for t in turns if t["workload"] == workload]
        if not own:
            continue
        print(f"\n{workload}\n\n| | turns | ours | peer | ratio | error: ours | peer |\n|---|---|---|---|---|---|---|")

        def line(name, by, ours, theirs, errors=None):
            both = [(ours(t[by]), theirs(t["peer"])) for t in own if by in t]
            a, b = (np.median(side) for side in zip(*both))
            low, ratio, high = np.percentile([x / y for x, y in both], [25, 50, 75])
            said = [f"{np.median([error(t[of]) for t in own if by in t]):.2g}" if error else "" for of, error in zip((by, "peer"), errors or (None, None))]
            print(f"| {name} | {len(both)} | {number(a)} | {number(b)} | **{ratio:.2f}** ± {(high - low) / 2:.2f} | {said[0]} | {said[1]} |")

        arithmetics = sorted({by for t in own for by in t} - {"peer"}, key=lambda by: (by != "f32", by))
        rate = lambda name: lambda r: r[name]
        for by in arithmetics:
            line(f"training, {by}", by, rate("train_samples_per_s"), rate("train_samples_per_s"))
        by = arithmetics[0]
        line("log p, one call (nats)", by, rate("log_prob_per_s"), rate("log_prob_per_s"), (rate("log_prob_standard_error"), None))
        for method in [i["method"] for i in next(t[by] for t in own if by in t)["inverse"]]:
            of = lambda name, method=method: lambda r: next(i[name] for i in r["inverse"] if i["method"] == method)
            errors = (of("round_trip_error"), rate("round_trip_error"))
            line(f"inversion, {method}", by, of("invert_per_s"), rate("invert_per_s"), errors)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--minutes", type=float, default=60)
    a.add_argument("--ours", type=Path, default=HERE.parents[1] / "target/release/examples/throughput")
    a.add_argument("--products", nargs="+", default=["f32"])
    a.add_argument("--only", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    a.add_argument("--log", type=Path)
    a = a.parse_args()
    if not a.ours.exists():
        sys.exit(f"alternate: there is no {a.ours}; `cargo build --release --example throughput` makes it, or name another by --ours")
    turns = [json.loads(line) for line in a.log.read_text().splitlines()] if a.log and a.log.exists() else []
    spent = {w: sum(t["seconds"] for t in turns if t["workload"] == w) for w in a.only}
    end = time.monotonic() + 60 * a.minutes
    try:
        while time.monotonic() < end:
            workload, start = min(spent, key=spent.get), time.monotonic()
            commands = [(p, [str(a.ours), "--threads", "1", "--only", workload, "--products", p]) for p in a.products]
            commands.append(("peer", [sys.executable, str(HERE / "normflows_bench.py"), "--threads", "1", "--only", workload]))
            turn = sum(t["workload"] == workload for t in turns)
            runs = {by: run(command) for by, command in (commands if turn % 2 == 0 else commands[::-1])}
            turns.append(dict(workload=workload, seconds=time.monotonic() - start, runs=runs))
            if a.log:
                with a.log.open("a") as log:
                    log.write(json.dumps(turns[-1]) + "\n")
            spent[workload] += turns[-1]["seconds"]
            print(f"{workload}: {turns[-1]['seconds']:.0f} s, {max(0, end - time.monotonic()) / 60:.0f} min left", file=sys.stderr)
    except (RuntimeError, ValueError, OSError, KeyboardInterrupt) as error:
        table(turns)
        sys.exit(f"alternate: ended early: {error}")
    table(turns)


if __name__ == "__main__":
    main()
