#!/usr/bin/env python3
"""Times the steps of the program on one table, with the largest memory of each, beside pandas reading the same file.

    python steps.py --resflow PATH --data DIR [--table million-20] [--time 60] [--threads 2] [--model residual]

Prints Markdown: seconds of the wall clock and the largest resident memory of the process, which for pandas is that of a new
Python with pandas imported.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path


def run(command):
    """Seconds and MiB of a command; it must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            sys.exit(f"{command[0]}: {said.read().decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resflow", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", default="million-20")
    parser.add_argument("--time", type=float, default=60.0, help="the time limit of the fit, seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="residual")
    arguments = parser.parse_args()
    table, resflow, threads = arguments.data / arguments.table / "train.csv", arguments.resflow, arguments.threads
    pandas = "import sys, pandas; pandas.read_csv(sys.argv[1])"
    with tempfile.TemporaryDirectory() as scratch:
        directory, scores = Path(scratch) / "run", Path(scratch) / "scores.csv"
        fit = ["fit", table, "--model", arguments.model, "--time-limit", f"{arguments.time:g}", "--threads", threads, "--out", directory]
        steps = [
            ("`pandas.read_csv`", [sys.executable, "-c", pandas, table]),
            ("`resflow look`: read and looked at", [resflow, "look", table]),
            (f"`resflow fit --time-limit {arguments.time:g}`: read, looked at, fitted, reported", [resflow, *fit]),
            ("`resflow score`: read, every row scored and written", [resflow, "score", directory, table, "--threads", threads, "--out", scores]),
        ]
        print("| step | seconds | memory, MiB |\n|---|---|---|")
        for name, command in steps:
            seconds, memory = run(command)
            print(f"| {name} | {seconds:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
