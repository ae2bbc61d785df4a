#!/usr/bin/env python3
"""Posteriors of two benchmark simulators: this library's conditional flow beside sbi's NPE with its default flow.

    python posteriors.py --resflow PATH --out RESULTS [--tasks two-moons,slcp] [--seeds 1,2,3]
    (pip install -r requirements.txt)

Both are trained on the same 10,000 simulations. sbi trains until it stops by itself; the flow gets as many steps as take the same CPU time
(one thread each; how long a step takes is found by two short fits), so that the comparison holds on a busy machine too:

    resflow fit simulations.csv --given x1,…,xk --config bounds.toml --steps N --threads 1 --out RUN
    resflow sample RUN --given observations.csv -n 4000 --out samples.csv

Judged are, on observations that the prior predicts:
  C2ST   the accuracy of a classifier that tells samples from the reference posterior (cross-validated over five parts; 0.5 is perfect), 5 observations
  TARP   expected coverage (Lemos et al. 2023, arXiv 2302.03026) of 500 pairs, 100 draws each: the largest distance between coverage and credibility,
         with the p-value of Kolmogorov and Smirnov
  log q  mean log density of the 500 truths, nats: higher is better
  inside the share of samples within the prior's bounds before any is rejected
What is there in RESULTS is not computed again.
"""
import argparse, json, os, resource, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from simulators import TASKS

SIMULATIONS, OBSERVATIONS, DRAWS, PAIRS, PAIR_DRAWS = 10_000, 5, 4_000, 500, 100


def c2st(own, reference):
    """As in the benchmark of Lueckmann et al. 2021 (arXiv 2101.04653): standardised, two hidden layers of 10 d."""
    centre, scale = reference.mean(axis=0), reference.std(axis=0)
    x = np.concatenate([own, reference])
    x = (x - centre) / scale
    y = np.concatenate([np.zeros(len(own)), np.ones(len(reference))])
    width = 10 * x.shape[1]
    net = MLPClassifier(activation="relu", hidden_layer_sizes=(width, width), max_iter=1000, solver="adam", random_state=1)
    return cross_val_score(net, x, y, cv=KFold(5, shuffle=True, random_state=1), scoring="accuracy").mean()


def tarp(draws, truth, rng, bound):
    """The distance of the law of the truths' places from uniform, and its p-value; reference points are drawn from the prior."""
    reference = rng.uniform(-bound, bound, truth.shape)
    own = np.linalg.norm(truth - reference, axis=1)
    others = np.linalg.norm(draws - reference[:, None], axis=2)
    places = ((others < own[:, None]).sum(axis=1) + rng.uniform(size=len(own))) / (draws.shape[1] + 1)
    found = stats.kstest(places, "uniform")
    return found.statistic, found.pvalue


class Sbi:
    """NPE as its front page uses it."""

    def __init__(self, task, theta, x, seed):
        import torch
        from sbi.inference import NPE
        from sbi.utils import BoxUniform

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.torch, self.bound = torch, task.bound
        prior = BoxUniform(low=-task.bound * torch.ones(task.d), high=task.bound * torch.ones(task.d))
        start = time.process_time()
        inference = NPE(prior=prior, show_progress_bars=False)
        self.net = inference.append_simulations(self.tensor(theta), self.tensor(x)).train()
        self.posterior = inference.build_posterior(self.net)
        self.seconds = time.process_time() - start

    def tensor(self, values):
        return self.torch.as_tensor(np.asarray(values), dtype=self.torch.float32)

    def sample(self, x, n):
        found = [self.posterior.sample((n,), x=self.tensor(row), show_progress_bars=False).numpy() for row in x]
        return np.stack(found)

    def inside(self, x, n):
        with self.torch.no_grad():
            found = self.net.sample((n,), condition=self.tensor(x)).numpy()
        return float((np.abs(found) < self.bound).all(axis=-1).mean())

    def log_density(self, theta, x):
        with self.torch.no_grad():
            return self.net.log_prob(self.tensor(theta)[None], condition=self.tensor(x))[0].numpy()


class Resflow:
    def __init__(self, program, folder, task, theta, x, seed, seconds):
        self.program, self.folder, self.task = program, folder, task
        folder.mkdir(parents=True, exist_ok=True)
        self.names = [f"t{i + 1}" for i in range(task.d)], [f"x{i + 1}" for i in range(task.k)]
        self.table(theta, x).to_csv(folder / "simulations.csv", index=False)
        bounds = ", ".join(f"{name} = {{ between = [{-task.bound}, {task.bound}] }}" for name in self.names[0])
        (folder / "bounds.toml").write_text(f"[train]\nsupports = {{ {bounds} }}\n")
        fit = ["fit", "simulations.csv", "--given", ",".join(self.names[1]), "--config", "bounds.toml", "--seed", seed, "--overwrite", "--out"]
        short, longer = (self.run(*fit, "short", "--steps", steps) for steps in (200, 800))
        self.steps = max(1, int(200 + (seconds - short) / (longer - short) * 600))
        self.seconds = self.run(*fit, "run", "--steps", self.steps)

    def run(self, *command):
        """CPU seconds of a command."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [str(part) for part in (self.program, *command, "--threads", 1)]
        done = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(" ".join(command) + "\n" + done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def table(self, theta, x):
        return pd.DataFrame(np.concatenate([theta, x], axis=1), columns=sum(self.names, []))

    def sample(self, x, n):
        pd.DataFrame(x, columns=self.names[1]).to_csv(self.folder / "observations.csv", index=False)
        self.run("sample", "run", "--given", "observations.csv", "-n", n, "--out", "samples.csv")
        found = pd.read_csv(self.folder / "samples.csv")[self.names[0]].to_numpy()
        return found.reshape(len(x), n, self.task.d)

    def inside(self, x, n):
        return float((np.abs(self.sample(x, n)) < self.task.bound).all(axis=-1).mean())

    def log_density(self, theta, x):
        self.table(theta, x).to_csv(self.folder / "pairs.csv", index=False)
        self.run("score", "run", "pairs.csv", "--out", "scores.csv")
        return pd.read_csv(self.folder / "scores.csv")["log_prob"].to_numpy()


def judge(method, task, reference, observed, pairs, rng):
    own = method.sample(observed, DRAWS)
    accuracies = [c2st(own, exact) for own, exact in zip(own, reference)]
    theta, x = pairs
    distance, p_value = tarp(method.sample(x, PAIR_DRAWS), theta, rng, task.bound)
    density = method.log_density(theta, x)
    return {
        "c2st": accuracies, "tarp": distance, "p_value": p_value, "log_density": float(density.mean()),
        "log_density_error": float(density.std(ddof=1) / np.sqrt(len(density))), "inside": method.inside(observed, DRAWS), "seconds": method.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resflow", type=lambda p: Path(p).resolve(), required=True, help="the program")
    parser.add_argument("--out", type=lambda p: Path(p).resolve(), required=True, help="a folder")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2,3")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # where sbi leaves its logs
    os.chdir(arguments.out)
    print("| task, seed | method | C2ST | TARP (p) | log q, nats | inside | CPU seconds |\n|---|---|---|---|---|---|---|")
    for name in arguments.tasks.split(","):
        task = TASKS[name]
        for seed in map(int, arguments.seeds.split(",")):
            folder = arguments.out / f"{name}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(seed)
            theta = task.prior(rng, SIMULATIONS)
            x = task.simulate(rng, theta)
            # the same observations for all seeds of the training
            own = np.random.default_rng(2026)
            observed = task.simulate(own, task.prior(own, OBSERVATIONS))
            kept = arguments.out / f"{name}-reference.npy"
            if not kept.exists():
                np.save(kept, np.stack([task.posterior(own, row, DRAWS) for row in observed]))
            truths = task.prior(np.random.default_rng(7), PAIRS)
            pairs = truths, task.simulate(np.random.default_rng(8), truths)
            makers = {
                "sbi": lambda: Sbi(task, theta, x, seed),
                "resflow": lambda: Resflow(arguments.resflow, folder, task, theta, x, seed, json.loads((folder / "sbi.json").read_text())["seconds"]),
            }
            for label, make in makers.items():
                path = folder / f"{label}.json"
                if not path.exists():
                    path.write_text(json.dumps(judge(make(), task, np.load(kept), observed, pairs, np.random.default_rng(9))))
                found = json.loads(path.read_text())
                spread = np.std(found["c2st"], ddof=1) / np.sqrt(len(found["c2st"]))
                print(
                    f"| {name}, {seed} | {label} | {np.mean(found['c2st']):.3f} ± {spread:.3f} | {found['tarp']:.3f} ({found['p_value']:.2g}) "
                    f"| {found['log_density']:.3f} ± {found['log_density_error']:.3f} | {100 * found['inside']:.1f} % | {found['seconds']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
