"""Two benchmarks of simulation-based inference by their definitions: priors, simulators, reference posteriors.

Two moons (Greenberg, Nonnenmacher & Macke 2019, arXiv 1905.07488), d = 2:
    θ ~ U(−1, 1)²;  x = (r cos a + 0.25 − |θ₁ + θ₂|/√2, r sin a + (θ₂ − θ₁)/√2),  a ~ U(−π/2, π/2), r ~ N(0.1, 0.01²)
SLCP (Papamakarios, Sterratt & Murray 2019, arXiv 1805.07226), d = 5, simple likelihood, complex posterior:
    θ ~ U(−3, 3)⁵;  x = four draws of N(m, S),  m = (θ₁, θ₂), S₁₁ = θ₃⁴, S₂₂ = θ₄⁴, S₁₂ = tanh(θ₅) θ₃² θ₄²
"""
import math

import numpy as np


class TwoMoons:
    bound, d, k = 1.0, 2, 2

    @staticmethod
    def prior(rng, n):
        return rng.uniform(-1, 1, (n, 2))

    @staticmethod
    def simulate(rng, theta):
        p = TwoMoons._crescent(rng, len(theta))
        shift = np.stack([-np.abs(theta[:, 0] + theta[:, 1]), theta[:, 1] - theta[:, 0]], axis=1) / math.sqrt(2)
        return p + shift

    @staticmethod
    def _crescent(rng, n):
        a, r = rng.uniform(-math.pi / 2, math.pi / 2, n), rng.normal(0.1, 0.01, n)
        return np.stack([r * np.cos(a) + 0.25, r * np.sin(a)], axis=1)

    @staticmethod
    def posterior(rng, x, n):
        """Exact draws: θ ↦ p = x − shift(θ) is two-to-one with a constant Jacobian, so θ is what leads to a p of its law."""
        found = np.empty((0, 2))
        while len(found) < n:
            p = TwoMoons._crescent(rng, 4 * n)
            total = math.sqrt(2) * (p[:, 0] - x[0])
            p, total = p[total >= 0], total[total >= 0]
            total *= rng.choice([-1.0, 1.0], len(total))
            difference = math.sqrt(2) * (x[1] - p[:, 1])
            theta = np.stack([total - difference, total + difference], axis=1) / 2
            found = np.concatenate([found, theta[(np.abs(theta) < 1).all(axis=1)]])
        return found[:n]


class Slcp:
    bound, d, k = 3.0, 5, 8

    @staticmethod
    def prior(rng, n):
        return rng.uniform(-3, 3, (n, 5))

    @staticmethod
    def simulate(rng, theta):
        s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
        e = rng.standard_normal((len(theta), 4, 2))
        first = theta[:, :1] + s1[:, None] * e[:, :, 0]
        second = theta[:, 1:2] + s2[:, None] * (rho[:, None] * e[:, :, 0] + np.sqrt(1 - rho**2)[:, None] * e[:, :, 1])
        return np.stack([first, second], axis=2).reshape(len(theta), 8)

    @staticmethod
    def log_likelihood(theta, x):
        s1, s2, rho = theta[:, 2] ** 2 + 1e-12, theta[:, 3] ** 2 + 1e-12, np.tanh(theta[:, 4])
        away = x.reshape(4, 2)[None] - theta[:, None, :2]
        u, v = away[:, :, 0] / s1[:, None], away[:, :, 1] / s2[:, None]
        rest = 1 - rho**2 + 1e-15
        square = ((u**2 - 2 * rho[:, None] * u * v + v**2) / rest[:, None]).sum(axis=1)
        return -0.5 * square - 4 * (np.log(s1) + np.log(s2) + 0.5 * np.log(rest))

    @staticmethod
    def posterior(rng, x, n, particles=20_000):
        """Annealed particles with Metropolis moves on |θ₃|, |θ₄|, whose signs the likelihood does not see and are drawn last."""
        theta = Slcp.prior(rng, particles)
        theta[:, 2:4] = np.abs(theta[:, 2:4])
        value, beta = Slcp.log_likelihood(theta, x), 0.0

        def effective(step):
            w = np.exp(step * (value - value.max()))
            return w.sum() ** 2 / (w**2).sum()

        def move(theta, value, beta, width):
            root = np.linalg.cholesky(np.cov(theta.T) + 1e-10 * np.eye(5))
            proposed = theta + width * rng.standard_normal(theta.shape) @ root.T
            inside = (np.abs(proposed) < 3).all(axis=1) & (proposed[:, 2:4] > 0).all(axis=1)
            new = np.where(inside, Slcp.log_likelihood(np.where(inside[:, None], proposed, theta), x), -np.inf)
            yes = np.log(rng.uniform(size=len(theta))) < beta * (new - value)
            return np.where(yes[:, None], proposed, theta), np.where(yes, new, value), yes.mean()

        width = 1.0
        while beta < 1:
            low, high = 0.0, 1 - beta
            if effective(high) < 0.5 * particles:
                for _ in range(60):
                    middle = (low + high) / 2
                    low, high = (middle, high) if effective(middle) > 0.5 * particles else (low, middle)
            beta = min(1.0, beta + high)
            w = np.exp(high * (value - value.max()))
            chosen = rng.choice(particles, particles, p=w / w.sum())
            theta, value = theta[chosen], value[chosen]
            # moves at the end are many, since they make the particles independent
            for _ in range(20 if beta < 1 else 300):
                theta, value, rate = move(theta, value, beta, width)
                width *= math.exp(0.5 * (rate - 0.25))
        theta[:, 2:4] *= rng.choice([-1.0, 1.0], (particles, 2))
        return theta[rng.choice(particles, n, replace=False)]


TASKS = {"two-moons": TwoMoons, "slcp": Slcp}
