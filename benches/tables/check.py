#!/usr/bin/env python3
"""Checks of the generators: what the synthetic tables claim to be known must be.

    python check.py                     the densities, some 400,000 draws of each
    python check.py --data DIR          the files too: shapes, finite cells, stored log p, no row in both parts

A statistical check fails by chance once in some 100,000 cases; seeds are fixed.
"""
import argparse, json, math, sys
from pathlib import Path

import numpy as np
from scipy import integrate, special, stats

import synthetic, tables
from prepare import generator

DRAWS = 400_000
SIGMAS = 4.5
failures = []


def expect(right, what):
    print(("ok   " if right else "BAD  ") + what, flush=True)
    if not right:
        failures.append(what)


def within(value, error, expected, what, least=1e-9):
    expect(abs(value - expected) <= SIGMAS * error + least, f"{what}: {value:.6g} ± {error:.2g}, expected {expected:.6g}")


def check_density(name, density, rng):
    """Entropy by formula against that of draws, and the volume of a box."""
    x = density.sample(DRAWS, rng)
    log_p = density.log_density(x)
    expect(np.isfinite(log_p).all(), f"{name}: log p of {DRAWS} draws is finite")
    exact = density.entropy()
    if exact is not None:
        within(-log_p.mean(), log_p.std() / math.sqrt(DRAWS), exact, f"{name}: entropy")
    if isinstance(density, synthetic.Coupled) and not isinstance(density.copula, synthetic.GumbelPairs):
        check_box(name, density, x, log_p)


def check_box(name, density, x, log_p):
    """E_p[1(x in a box) / p(x)] is the box's volume. Only where p varies little in the middle of the data: elsewhere the
    weights 1 / p have a tail that makes the standard error a poor guide."""
    low, high = np.quantile(x, 0.2, axis=0), np.quantile(x, 0.8, axis=0)
    inside = ((x > low) & (x < high)).all(1)
    ratio = np.where(inside, np.exp(-log_p - np.log(high - low).sum()), 0.0)
    error = ratio.std() / math.sqrt(DRAWS)
    if error < 0.03:
        within(ratio.mean(), error, 1.0, f"{name}: volume of a box by {inside.sum()} draws in it")


def check_plane(name, density):
    """Two columns: the integral over the plane."""
    x = density.sample(DRAWS, np.random.default_rng(1))
    low, high = x.min(0) - 0.2 * np.ptp(x, axis=0), x.max(0) + 0.2 * np.ptp(x, axis=0)
    n = 3000
    axes = [low[i] + (np.arange(n) + 0.5) * (high[i] - low[i]) / n for i in range(2)]
    total = sum(np.exp(density.log_density(np.stack([np.full(n, a), axes[1]], axis=1))).sum() for a in axes[0])
    total *= np.prod((high - low) / n)
    expect(abs(total - 1) < 1e-4, f"{name}: integral over the plane {total:.6f}")


def check_margins(name, density, rng):
    """Kolmogorov and Smirnov's test of each column of draws against scipy's distribution."""
    x = density.sample(20_000, rng)
    for i, margin in enumerate(density.margins):
        p = stats.kstest(x[:, i], margin.cdf).pvalue
        expect(p > 1e-5, f"{name}: column {i + 1} is {margin.dist.name}{margin.args}, p = {p:.3g}")


def check_mixture(name, density, rng):
    """log p against scipy's multivariate normal; for a known component the mean and covariance of draws are its own."""
    x = density.sample(200, rng)
    covariances = density.factors @ density.factors.transpose(0, 2, 1)
    # scipy takes columns of very different units for a singular matrix
    unit = np.sqrt(np.diag(covariances[0]))
    terms = []
    for weight, mean, covariance in zip(density.weights, density.means, covariances):
        normal = stats.multivariate_normal(mean / unit, covariance / np.outer(unit, unit))
        terms.append(math.log(weight) + normal.logpdf(x / unit) - np.log(unit).sum())
    error = np.abs(special.logsumexp(terms, axis=0) - density.log_density(x)).max()
    expect(error < 1e-7, f"{name}: log p as scipy's, largest difference {error:.1g}")
    x = density.sample(DRAWS, rng)
    mean = density.weights @ density.means
    for i in range(density.columns):
        second = density.weights @ (covariances[:, i, i] + density.means[:, i] ** 2) - mean[i] ** 2
        z = (x[:, i].mean() - mean[i]) / math.sqrt(second / DRAWS)
        spread = x[:, i].var() / second - 1
        if abs(z) > SIGMAS + 1 or abs(spread) > 0.03:
            expect(False, f"{name}: column {i + 1} has mean {z:.1f} errors and variance {spread:.3f} from its own")


def mixed_derivative(cumulative, u, v, h=1e-4):
    return (cumulative(u + h, v + h) - cumulative(u + h, v - h) - cumulative(u - h, v + h) + cumulative(u - h, v - h)) / (4 * h * h)


def check_copula(name, copula, cumulative, dependence):
    """In two columns: the density is the mixed derivative of C; Kendall's τ of draws is the formula's."""
    grid = np.linspace(0.05, 0.95, 19)
    u, v = (a.ravel() for a in np.meshgrid(grid, grid))
    x = np.stack([u, v], axis=1)
    density = np.exp(copula.log_density(x, 1 - x))
    expected = mixed_derivative(cumulative, u, v)
    error = (np.abs(density - expected) / (expected + 0.01)).max()
    expect(error < 1e-3, f"{name}: density as the derivative of C, largest relative difference {error:.1g}")
    draws, rest = copula.sample(20_000, np.random.default_rng(2))
    expect(np.abs(draws + rest - 1).max() < 1e-12, f"{name}: u and 1 − u of draws add to 1")
    tau = stats.kendalltau(draws[:, 0], draws[:, 1]).statistic
    # the error of Kendall's τ is at most that of independent columns times a factor below 2
    within(tau, 2 * math.sqrt(4 / 9 / len(draws)), dependence, f"{name}: Kendall's τ")
    inside = (draws[:, 0] < 0.3) & (draws[:, 1] < 0.4)
    expected = float(cumulative(0.3, 0.4))
    within(inside.mean(), math.sqrt(expected * (1 - expected) / len(draws)), expected, f"{name}: C(0.3, 0.4) by draws")


def check_densities():
    theta = 2.0
    check_copula("Clayton", synthetic.ClaytonCopula(theta, 2), lambda u, v: (u**-theta + v**-theta - 1) ** (-1 / theta), theta / (theta + 2))
    for theta in (1.5, 4.0):
        def cumulative(u, v, t=theta):
            return np.exp(-(((-np.log(u)) ** t + (-np.log(v)) ** t) ** (1 / t)))

        check_copula(f"Gumbel {theta}", synthetic.GumbelPairs([theta]), cumulative, 1 - 1 / theta)
    correlations = np.array([[1, 0.6], [0.6, 1]])
    normal = stats.multivariate_normal([0, 0], correlations)

    def gaussian(u, v):
        points = np.stack(np.broadcast_arrays(special.ndtri(u), special.ndtri(v)), axis=-1)
        return normal.cdf(points)

    u = np.array([0.2, 0.5, 0.7])
    copula = synthetic.GaussianCopula(correlations)
    z = special.ndtri(u)
    expected = normal.logpdf(np.stack([z, z[::-1]], axis=1)) - stats.norm.logpdf(z) - stats.norm.logpdf(z[::-1])
    x = np.stack([u, u[::-1]], axis=1)
    expect(np.abs(copula.log_density(x, 1 - x) - expected).max() < 1e-9, "Gaussian copula: log c as scipy's")
    draws, _ = copula.sample(20_000, np.random.default_rng(3))
    expected = float(gaussian(np.array(0.3), np.array(0.4)))
    inside = ((draws[:, 0] < 0.3) & (draws[:, 1] < 0.4)).mean()
    within(inside, math.sqrt(expected * (1 - expected) / 20_000), expected, "Gaussian copula: C(0.3, 0.4) by draws")
    for name, (_, _, maker) in synthetic.TABLES.items():
        density, rng = maker(generator(name, "density")), generator(name, "check")
        check_density(name, density, rng)
        if density.columns == 2:
            check_plane(name, density)
        if isinstance(density, synthetic.Coupled):
            check_margins(name, density, rng)
        if isinstance(density, synthetic.Mixture):
            check_mixture(name, density, rng)
    rings = synthetic.TABLES["rings-2"][2](None)
    mass = integrate.quad(lambda r: math.exp(rings.log_radial(np.array([r]))[0]), 0, 5, points=[1, 2, 3], limit=200)[0]
    expect(abs(mass - 1) < 1e-8, f"rings-2: integral over the radius {mass:.9f}")


def check_files(data):
    for name in tables.names(data):
        folder = data / name
        meta, train, test = tables.meta(folder), tables.read(folder, "train"), tables.read(folder, "test")
        shapes = (train.shape, test.shape) == ((meta["train_rows"], meta["columns"]), (meta["test_rows"], meta["columns"]))
        expect(shapes and np.isfinite(train).all() and np.isfinite(test).all(), f"{name}: {train.shape} and {test.shape}, finite")
        both = len({row.tobytes() for row in train} & {row.tobytes() for row in test})
        expect(both == 0, f"{name}: no row is in both parts")
        distinct = min(len(np.unique(train[:, i])) for i in range(train.shape[1])) / len(train)
        expect(distinct > 0.9, f"{name}: columns are continuous, least share of distinct values {distinct:.3f}")
        true = tables.true_log_p(folder)
        if true is not None:
            density = synthetic.TABLES[name][2](generator(name, "density"))
            expect(np.array_equal(density.log_density(test), true), f"{name}: stored log p is that of the rows")
            error = math.hypot(true.std() / math.sqrt(len(true)), meta["entropy_se"])
            within(-true.mean(), error, meta["entropy"], f"{name}: entropy by the test rows")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    check_densities()
    if arguments.data:
        check_files(arguments.data)
    print(f"{len(failures)} failed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
