"""What is obvious: a Gaussian, mixtures of Gaussians and kernel densities, by scikit-learn, on standardised columns."""
import time, warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

MOST_COMPONENTS = 10
MOST_KERNELS = 10_000
MOST_MIXTURE_ROWS = 200_000
FOLDS = 5


class Standard:
    """Units of mean 0 and deviation 1."""

    def __init__(self, rows):
        self.centre, self.scale = rows.mean(0), rows.std(0)

    def apply(self, rows):
        return (rows - self.centre) / self.scale

    def log_det(self):
        return -np.log(self.scale).sum()


def gaussian(train, seconds, seed):
    """The training rows' mean and covariance, as one component."""
    standard = Standard(train)
    model = GaussianMixture(1, random_state=seed).fit(standard.apply(train))
    return scorer(standard, model), {}


def mixture(shape, train, seconds, seed):
    """K of 1 to 10, the best of three starts by k-means each, by the log likelihood of a tenth of the rows; from there EM goes on
    with all of them if there is time."""
    start = time.perf_counter()
    standard = Standard(train)
    rows = standard.apply(train)
    order = np.random.default_rng(seed).permutation(len(rows))[:MOST_MIXTURE_ROWS]
    held = min(max(len(order) // 10, 1), 10_000)
    validation, rest = rows[order[:held]], rows[order[held:]]
    best, best_value, tried = None, -np.inf, 0
    for components in range(1, MOST_COMPONENTS + 1):
        if components > len(rest) // 2:
            break
        began = time.perf_counter()
        model = fitted(components, shape, rest, seed)
        value = model.score(validation)
        tried = components
        if best is None or value > best_value:
            best, best_value = model, value
        used = time.perf_counter() - began
        # the next takes longer, and the winner goes on
        if time.perf_counter() - start + 1.7 * used > seconds:
            break
    if time.perf_counter() - start < 0.9 * seconds:
        # from where it is: another start may end in a worse place
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            best = best.set_params(warm_start=True).fit(rows[order])
    notes = {"components": int(best.n_components), "components_tried": tried, "validation_log_p": best_value + standard.log_det(), "validation_rows": held}
    return scorer(standard, best), notes


def fitted(components, shape, rows, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(components, covariance_type=shape, random_state=seed, max_iter=200, n_init=3).fit(rows)


def scorer(standard, model):
    def log_p(rows):
        return model.score_samples(standard.apply(rows)) + standard.log_det()

    return log_p


def kernels(train, seconds, seed):
    """One Gaussian bandwidth for the standardised columns, by five-fold cross-validation from Scott's rule up and down in
    steps of 2^(1/2) for as long as the likelihood rises and half of the time lasts; of more than 10,000 rows a sample."""
    start = time.perf_counter()
    standard = Standard(train)
    order = np.random.default_rng(seed).permutation(len(train))[:MOST_KERNELS]
    rows = standard.apply(train[order])
    folds = np.arange(len(rows)) % FOLDS
    found = {}

    def validated(exponent):
        if exponent not in found:
            width = bandwidth(exponent, rows)
            # of many rows each fold judges by some
            scores = [KernelDensity(bandwidth=width).fit(rows[folds != k]).score_samples(rows[folds == k][:400]) for k in range(FOLDS)]
            found[exponent] = float(np.concatenate(scores).mean())
        return found[exponent]

    best = 0
    validated(best)
    for direction in (-1, 1):
        while time.perf_counter() - start < 0.5 * seconds and validated(best + direction) > found[best]:
            best += direction
    width = bandwidth(best, rows)
    notes = {"bandwidth": width, "bandwidths_tried": len(found), "kernels": len(rows), "validation_log_p": found[best] + standard.log_det()}
    return scorer(standard, KernelDensity(bandwidth=width).fit(rows)), notes


def bandwidth(exponent, rows):
    return float(len(rows) ** (-1 / (rows.shape[1] + 4)) * 2 ** (exponent / 2))
