"""Densities that are known exactly, from which the synthetic tables are drawn.

A density has `columns`, `sample(n, rng)` and `log_density(x)` (nats, in the units of x). Copulas couple margins F_i by

    p(x) = c(F_1(x_1), …, F_d(x_d)) Π f_i(x_i),

and get each u = F(x) together with 1 − u, since in the upper tail one of the two has no digits left.
"""
import math

import numpy as np
from scipy import integrate, special, stats


class Mixture:
    """Σ_k w_k N(μ_k, Σ_k); one component is a Gaussian."""

    def __init__(self, weights, means, covariances):
        self.weights, self.means = np.asarray(weights), np.asarray(means)
        self.factors = np.linalg.cholesky(np.asarray(covariances))
        self.columns = self.means.shape[1]

    def sample(self, n, rng):
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        x = rng.standard_normal((n, self.columns))
        for k, (mean, factor) in enumerate(zip(self.means, self.factors)):
            x[component == k] = mean + x[component == k] @ factor.T
        return x

    def log_density(self, x):
        terms = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors):
            z = np.linalg.solve(factor, (x - mean).T)
            log_det = np.log(np.diag(factor)).sum()
            terms.append(math.log(weight) - 0.5 * (z * z).sum(0) - log_det - 0.5 * self.columns * math.log(2 * math.pi))
        return special.logsumexp(terms, axis=0)

    def entropy(self):
        if len(self.weights) > 1:
            return None
        return 0.5 * self.columns * math.log(2 * math.pi * math.e) + np.log(np.diag(self.factors[0])).sum()


class Rings:
    """Rings about the origin of the plane: the angle is uniform, the radius a mixture of normals cut off at 0,
    p(x) = p(r) / (2π r)."""

    columns = 2

    def __init__(self, weights, radii, width):
        self.weights, self.radii, self.width = np.asarray(weights), np.asarray(radii), width

    def radius(self, k):
        return stats.truncnorm(-self.radii[k] / self.width, np.inf, self.radii[k], self.width)

    def sample(self, n, rng):
        ring = rng.choice(len(self.radii), size=n, p=self.weights)
        r = np.empty(n)
        for k in range(len(self.radii)):
            r[ring == k] = self.radius(k).rvs((ring == k).sum(), random_state=rng)
        angle = rng.uniform(0, 2 * math.pi, n)
        return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)

    def log_radial(self, r):
        terms = [math.log(w) + self.radius(k).logpdf(r) for k, w in enumerate(self.weights)]
        return special.logsumexp(terms, axis=0)

    def log_density(self, x):
        r = np.hypot(x[:, 0], x[:, 1])
        return self.log_radial(r) - np.log(2 * math.pi * r)

    def entropy(self):
        def integrand(r):
            log_p = float(self.log_radial(np.array([r]))[0])
            return -math.exp(log_p) * (log_p - math.log(2 * math.pi * r))

        most = self.radii.max() + 12 * self.width
        return integrate.quad(integrand, 0, most, points=sorted(self.radii), limit=500, epsabs=1e-10)[0]


class Coupled:
    """Margins coupled by a copula."""

    def __init__(self, copula, margins):
        self.copula, self.margins, self.columns = copula, margins, len(margins)

    def sample(self, n, rng):
        u, v = self.copula.sample(n, rng)
        columns = [np.where(u[:, i] < 0.5, m.ppf(u[:, i]), m.isf(v[:, i])) for i, m in enumerate(self.margins)]
        return np.stack(columns, axis=1)

    def log_density(self, x):
        u = np.stack([m.cdf(x[:, i]) for i, m in enumerate(self.margins)], axis=1)
        v = np.stack([m.sf(x[:, i]) for i, m in enumerate(self.margins)], axis=1)
        return self.copula.log_density(u, v) + sum(m.logpdf(x[:, i]) for i, m in enumerate(self.margins))

    def entropy(self):
        copula = self.copula.entropy()
        return None if copula is None else copula + sum(float(m.entropy()) for m in self.margins)


class GaussianCopula:
    """Of N(0, R) with the correlations R: c = N(z; 0, R) / Π N(z_i), z_i = Φ⁻¹(u_i)."""

    def __init__(self, correlations):
        self.factor = np.linalg.cholesky(correlations)

    def sample(self, n, rng):
        z = rng.standard_normal((n, len(self.factor))) @ self.factor.T
        return special.ndtr(z), special.ndtr(-z)

    def log_density(self, u, v):
        z = np.where(u < 0.5, special.ndtri(np.minimum(u, 0.5)), -special.ndtri(np.minimum(v, 0.5)))
        white = np.linalg.solve(self.factor, z.T)
        return 0.5 * (z * z).sum(1) - 0.5 * (white * white).sum(0) - np.log(np.diag(self.factor)).sum()

    def entropy(self):
        return np.log(np.diag(self.factor)).sum()


class ClaytonCopula:
    """C = (Σ u_i^−θ − d + 1)^(−1/θ), dependent in the lower tail; drawn by Marshall and Olkin's mixture over
    V ~ Gamma(1/θ), u_i = (1 + E_i / V)^(−1/θ)."""

    def __init__(self, theta, columns):
        self.theta, self.columns = theta, columns

    def sample(self, n, rng):
        mixing = rng.gamma(1 / self.theta, size=(n, 1))
        log_u = -np.log1p(rng.exponential(size=(n, self.columns)) / mixing) / self.theta
        return np.exp(log_u), -np.expm1(log_u)

    def log_density(self, u, v):
        log_u = logarithm(u, v)
        log_sum = np.log1p(np.expm1(-self.theta * log_u).sum(1))
        constant = np.log1p(self.theta * np.arange(self.columns)).sum()
        return constant - (self.theta + 1) * log_u.sum(1) - (self.columns + 1 / self.theta) * log_sum

    def entropy(self):
        return None


class GumbelPairs:
    """Independent pairs of columns, each with C = exp(−(a^θ + b^θ)^(1/θ)), a = −log u, b = −log v, dependent in the upper
    tail; drawn over a positive stable V of index 1/θ (Kanter's formula), u_i = exp(−(E_i / V)^(1/θ))."""

    def __init__(self, thetas):
        self.thetas = thetas

    def sample(self, n, rng):
        columns = []
        for theta in self.thetas:
            alpha = 1 / theta
            angle, size = rng.uniform(0, math.pi, n), rng.exponential(size=n)
            stable = np.sin(alpha * angle) / np.sin(angle) ** theta
            stable *= (np.sin((1 - alpha) * angle) / size) ** ((1 - alpha) / alpha)
            columns += [(rng.exponential(size=n) / stable) ** alpha for _ in range(2)]
        a = np.stack(columns, axis=1)
        return np.exp(-a), -np.expm1(-a)

    def log_density(self, u, v):
        a = -logarithm(u, v)
        total = 0.0
        for i, theta in enumerate(self.thetas):
            first, second = a[:, 2 * i], a[:, 2 * i + 1]
            log_s = np.logaddexp(theta * np.log(first), theta * np.log(second))
            root = np.exp(log_s / theta)
            total = total - root + first + second + (theta - 1) * (np.log(first) + np.log(second))
            total = total + (1 / theta - 2) * log_s + np.log(root + theta - 1)
        return total

    def entropy(self):
        return None


def logarithm(u, v):
    """log u from u and v = 1 − u, to full precision at both ends."""
    return np.where(u < 0.5, np.log(np.maximum(u, 1e-300)), np.log1p(-np.minimum(v, 0.5)))


def random_correlations(columns, rng, factors=3):
    """Correlations of a factor model with noise: some strong, none degenerate."""
    loadings = rng.standard_normal((columns, factors))
    covariance = loadings @ loadings.T + np.diag(rng.uniform(0.3, 1.5, columns))
    deviation = np.sqrt(np.diag(covariance))
    return covariance / np.outer(deviation, deviation)


def random_mixture(components, columns, rng, spread):
    """Components of different shapes and weights, in units that differ from column to column."""
    scale, shift = 10 ** rng.uniform(-2, 3, columns), rng.normal(0, 3, columns)
    means = (rng.normal(0, spread, (components, columns)) + shift) * scale
    covariances = []
    for _ in range(components):
        deviation = np.exp(rng.normal(-0.3, 0.4, columns)) * scale
        covariances.append(random_correlations(columns, rng) * np.outer(deviation, deviation))
    return Mixture(rng.dirichlet(np.full(components, 5.0)), means, covariances)


def student(rng, degrees):
    return [stats.t(df, loc=rng.normal(0, 10), scale=10 ** rng.uniform(-1, 2)) for df in degrees]


def log_normal(rng, sigmas):
    return [stats.lognorm(s, scale=10 ** rng.uniform(-1, 3)) for s in sigmas]


def exponential(rng, columns):
    return [stats.expon(scale=10 ** rng.uniform(-1, 3)) for _ in range(columns)]


def mixed(rng, columns):
    """Student t, log-normal, exponential and normal margins in turn."""
    makers = [lambda: student(rng, [rng.choice([3, 4, 6])])[0], lambda: log_normal(rng, [rng.uniform(0.4, 1.2)])[0],
              lambda: exponential(rng, 1)[0], lambda: stats.norm(rng.normal(0, 10), 10 ** rng.uniform(-1, 2))]
    return [makers[i % 4]() for i in range(columns)]


# name: (training rows, what is special, maker of the density from a generator)
TABLES = {
    "mixture-2": (2_000, "five Gaussians", lambda g: random_mixture(5, 2, g, 3.0)),
    "mixture-6": (5_000, "four Gaussians", lambda g: random_mixture(4, 6, g, 2.0)),
    "mixture-21": (10_000, "six Gaussians", lambda g: random_mixture(6, 21, g, 1.0)),
    "mixture-43": (20_000, "eight Gaussians", lambda g: random_mixture(8, 43, g, 0.7)),
    "rings-2": (2_000, "three rings: no mixture of few Gaussians", lambda g: Rings([0.2, 0.3, 0.5], [1.0, 2.0, 3.0], 0.12)),
    "gauss-t-8": (5_000, "Gaussian copula, Student t margins of 3 to 10 degrees of freedom: outliers",
                  lambda g: Coupled(GaussianCopula(random_correlations(8, g)), student(g, [3, 3, 4, 4, 5, 6, 8, 10]))),
    "gauss-lognormal-12": (3_000, "Gaussian copula, log-normal margins, σ from 0.3 to 1.3: heavy tails, positive",
                           lambda g: Coupled(GaussianCopula(random_correlations(12, g)), log_normal(g, np.linspace(0.3, 1.3, 12)))),
    "clayton-exponential-5": (10_000, "Clayton copula with θ = 2, exponential margins: an edge at 0, dependent at the edge",
                              lambda g: Coupled(ClaytonCopula(2.0, 5), exponential(g, 5))),
    "gumbel-mixed-6": (4_000, "three pairs with Gumbel copulas, t, log-normal, exponential and normal margins",
                       lambda g: Coupled(GumbelPairs([1.5, 2.5, 4.0]), mixed(g, 6))),
    "gaussian-63": (5_000, "one Gaussian: the least that can be asked for",
                    lambda g: random_mixture(1, 63, g, 1.0)),
    "small-6": (200, "200 rows: Gaussian copula, mixed margins",
                lambda g: Coupled(GaussianCopula(random_correlations(6, g)), mixed(g, 6))),
    "million-20": (1_000_000, "a million rows: Gaussian copula, mixed margins",
                   lambda g: Coupled(GaussianCopula(random_correlations(20, g)), mixed(g, 20))),
}


def entropy(density, rng, draws=1_000_000):
    """h = −E log p in nats, its standard error, and how it was found."""
    exact = density.entropy()
    if exact is not None:
        return float(exact), 0.0, "quadrature" if isinstance(density, Rings) else "formula"
    return *monte_carlo_entropy(density, rng, draws), f"mean of −log p over {draws} draws"


def monte_carlo_entropy(density, rng, draws):
    pieces = [-density.log_density(density.sample(draws // 10, rng)) for _ in range(10)]
    values = np.concatenate(pieces)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
