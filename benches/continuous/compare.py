#!/usr/bin/env python3
"""Continuous flows beside zuko's CNF and FFJORD on torchdiffeq: samples a second in training, and log p after equal time.

    pip install numpy torch zuko torchdiffeq
    cargo build --release -p resflow-cli
    python benches/continuous/compare.py target/release/resflow --seconds 120

One thread each, the same rows, batches of 512, a net of two hidden layers of 64, Dormand and Prince's pair with rtol 1e-5 and atol 1e-6,
Adam. Time is CPU time of the process, since the machine may do other things; reading, the start and the score are not in it. Tables are made
here: a checkerboard, and 21 columns of a mixture whose log density is known. Every row of the table is one run; the error is
that of the mean over the test rows, not over seeds.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, TEST_ROWS, BATCH, HIDDEN, RATE = 20_000, 4_000, 512, 64, 2e-3
RTOL, ATOL = 1e-5, 1e-6


def checkerboard(rows, rng):
    x = rng.uniform(-4, 4, rows)
    y = rng.uniform(0, 2, rows) - 4 * rng.integers(0, 2, rows) + np.floor(x) % 2 * 2
    return np.stack([x, y], 1)


def mixture(rows, rng):
    """21 columns: eight Gaussians on random linear maps, bent in pairs of columns."""
    maps = np.random.default_rng(7)
    means, factors = maps.normal(size=(8, 21)) * 2, maps.normal(size=(8, 21, 21)) / math.sqrt(21)
    which = rng.integers(0, 8, rows)
    x = means[which] + np.einsum("nij,nj->ni", factors[which], rng.normal(size=(rows, 21)))
    x[:, 1::2] += 0.2 * x[:, 0:-1:2] ** 2  # volume is kept: log p is that of the mixture
    return x


TABLES = {"checkerboard": checkerboard, "21 columns": mixture}


def flows():
    """The peers: a function of the number of columns that gives (net, log p in training, log p)."""
    import torch
    import zuko
    from torchdiffeq import odeint_adjoint

    torch.set_num_threads(1)

    def cnf(exact):
        def make(d):
            flow = zuko.flows.CNF(d, hidden_features=(HIDDEN, HIDDEN), activation=torch.nn.Tanh, atol=ATOL, rtol=RTOL, exact=exact)
            return flow, lambda x: flow().log_prob(x)

        return make

    class Field(torch.nn.Module):
        """FFJORD's: the time beside the input of every layer; the trace by one probe that stays the same in a solve."""

        def __init__(self, d):
            super().__init__()
            sizes = [d, HIDDEN, HIDDEN, d]
            self.layers = torch.nn.ModuleList(torch.nn.Linear(a + 1, b) for a, b in zip(sizes, sizes[1:]))
            self.probe = None

        def forward(self, t, state):
            with torch.enable_grad():
                x = state[0].requires_grad_(True)
                y = x
                for i, layer in enumerate(self.layers):
                    y = layer(torch.cat([y, t.expand(len(y), 1)], 1))
                    y = torch.tanh(y) if i + 1 < len(self.layers) else y
                along = torch.autograd.grad(y, x, self.probe, create_graph=True)[0]
            return y, -(along * self.probe).sum(1)

    def ffjord(d):
        field = Field(d)

        def log_prob(x):
            field.probe = torch.randn_like(x)
            state = (x, torch.zeros(len(x)))
            times = torch.tensor([1.0, 0.0])
            z, change = odeint_adjoint(field, state, times, rtol=RTOL, atol=ATOL, method="dopri5")
            normal = -0.5 * (z[-1] ** 2).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
            return normal - change[-1]

        return field, log_prob

    return {"zuko, exact trace": cnf(True), "zuko, one probe": cnf(False), "torchdiffeq, one probe": ffjord}


def train_peer(make, train, test, seconds):
    import torch

    torch.manual_seed(1)
    mean, scale = train.mean(0), train.std(0)
    x = torch.tensor((train - mean) / scale, dtype=torch.float32)
    flow, log_prob = make(x.shape[1])
    optimiser = torch.optim.Adam(flow.parameters(), lr=RATE)
    steps, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, 5 * (1 - spent / seconds))
        batch = x[torch.randint(len(x), (BATCH,))]
        loss = -log_prob(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    if isinstance(flow, torch.nn.Module):
        flow.eval()
    with torch.no_grad():
        own = torch.tensor((test - mean) / scale, dtype=torch.float32)
        values = torch.cat([log_prob(part) for part in own.split(500)]).numpy() - np.log(scale).sum()
    return steps / spent, -values.mean(), values.std() / math.sqrt(len(values)), steps


def run(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train_resflow(program, solver, objective, folder, train, test, seconds):
    np.save(folder / "train.npy", train)
    np.save(folder / "test.npy", test)
    config = folder / "run.toml"
    config.write_text(
        f'[flow]\nstart = "random"\nhidden = [{HIDDEN}, {HIDDEN}]\nactivation = "tanh"\nsolver = "{solver}"\n'
        f'[train]\nbatch = {BATCH}\nlearning_rate = {RATE}\nvalidate_every = 1000000\nobjective = "{objective}"\n'
    )

    def fit(steps):
        out = folder / "out"
        fitted = ["fit", folder / "train.npy", "--model", "ffjord", "--config", config, "--steps", steps, "--out", out]
        return run([program, *fitted, "--overwrite", "--threads", "1", "--seed", "1"])[1]

    few, more = 10, 40
    begin = fit(few)
    while (spent := fit(more) - begin) < seconds / 30:
        more *= 3
    per_step = spent / (more - few)
    steps = max(1, int(seconds / per_step))
    fit(steps)
    scored, _ = run([program, "score", folder / "out", folder / "test.npy", "--json", "--threads", "1"])
    scored = json.loads(scored)
    return 1 / per_step, -scored["mean_log_prob"], scored["mean_log_prob_se"], steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program resflow, built for speed")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU time of each training")
    parser.add_argument("--only", help="rows whose name contains this")
    arguments = parser.parse_args()
    exact = f"dopri5:rtol={RTOL},atol={ATOL}"
    own = {
        "resflow, the same pair": (exact, "likelihood"),
        "resflow, 16 steps of RK4 (default)": ("rk4:steps=16", "likelihood"),
        "resflow, flow matching": ("rk4:steps=16", "flow-matching"),
        "resflow, flow matching, then log p": ("rk4:steps=16", "flow-matching:fine-tune=0.5"),
    }
    print(f"| {arguments.seconds:g} s of one core | | samples/s | steps | −log p, nats |\n|---|---|---|---|---|")
    for table, draw in TABLES.items():
        train, test = draw(ROWS, np.random.default_rng(1)), draw(TEST_ROWS, np.random.default_rng(2))
        wanted = lambda name: arguments.only is None or arguments.only in name
        rows = [(name, lambda how=how: train_peer(how, train, test, arguments.seconds)) for name, how in flows().items()]
        for name, (solver, objective) in own.items():
            def go(solver=solver, objective=objective):
                with tempfile.TemporaryDirectory() as folder:
                    return train_resflow(arguments.program, solver, objective, Path(folder), train, test, arguments.seconds)
            rows.append((name, go))
        for name, go in rows:
            if wanted(name):
                rate, nll, error, steps = go()
                print(f"| {table} | {name} | {rate * BATCH:,.0f} | {steps} | {nll:.4f} ± {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
