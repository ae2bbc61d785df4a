"""The estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from ._arrays import Doubles
from ._flow import Flow

COUPLING = {"realnvp", "glow", "nsf", "flowpp"}
FAMILIES = {"residual", "iresnet", "dense", "implicit", "monotone", "ffjord"} | COUPLING


def seed_of(random_state: Any) -> int:
    """The seed that a ``random_state`` stands for: of an integer itself, else the next number of the generator."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


class ResidualFlow(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A density of the rows of a table by a residual flow, and a detector of outliers by it.

    A density estimator as :class:`sklearn.neighbors.KernelDensity` and :class:`sklearn.mixture.GaussianMixture` are, with
    :meth:`score_samples`, :meth:`score` and :meth:`sample`, and an outlier detector as
    :class:`sklearn.ensemble.IsolationForest` is, with :meth:`predict` and :meth:`decision_function`. Columns need no scaling:
    they are brought to a common shape within the model, and log p is in nats in the units of ``X``.

    Parameters
    ----------
    family : str, default="residual"
        The family of the flow: ``"residual"``, ``"iresnet"``, ``"dense"``, ``"implicit"``, ``"monotone"``, ``"realnvp"``,
        ``"glow"``, ``"nsf"``, ``"flowpp"`` or ``"ffjord"``.
    steps : int, default=None
        The most steps of training. The default follows from the rows, and training ends earlier when it has stopped to help.
    time_limit : float, default=None
        The seconds that training may take, instead of ``steps``.
    contamination : float, default=0.1
        The share of the rows of ``X`` that :meth:`predict` calls outliers, above 0 and at most 0.5.
    validation_fraction : float, default=None
        The share of the rows that is set aside for validation. The default follows from the rows.
    model, train : mapping, default=None
        Settings of the architecture and of the training by their names in a configuration file, such as ``{"blocks": 8}`` and
        ``{"batch": 512}``.
    regardless : bool, default=False
        Fits a table whose density has no meaning all the same, such as one with a column that is the sum of others.
    device : str, default="cpu"
        ``"cpu"``, ``"gpu"``, ``"gpu:NAME"`` or ``"best"``.
    precision : {"f32", "f64"}, default="f32"
        The arithmetic.
    threads : int, default=None
        The threads of the processor, all cores unless given. Results do not depend on it.
    verbose : int, default=0
        Shows a bar on ``stderr`` if it is not 0.
    random_state : int, RandomState instance or None, default=0
        The seed of weights, batches and estimates: the one that the program ``resflow`` calls ``--seed``. With ``None`` it is
        drawn from NumPy's global generator.

    Attributes
    ----------
    flow_ : Flow
        The flow, which can do more.
    offset_ : float
        The log p below which a row is an outlier, nats.
    n_features_in_ : int
        The number of columns.
    feature_names_in_ : array of str
        Their names, if ``X`` had names in :meth:`fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from resflow import ResidualFlow
    >>> angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    >>> ring = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1 * np.random.default_rng(1).normal(size=(400, 2))
    >>> estimator = ResidualFlow(steps=50).fit(ring)
    >>> estimator.score_samples([[1.0, 0.0], [0.0, 0.0]]).round(0).shape
    (2,)
    >>> estimator.predict([[1.0, 0.0], [9.0, 9.0]]).tolist()
    [1, -1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "family": [StrOptions(FAMILIES)],
        "steps": [Interval(Integral, 1, None, closed="left"), None],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "model": [Mapping, None],
        "train": [Mapping, None],
        "regardless": ["boolean"],
        "device": [str],
        "precision": [StrOptions({"f32", "f64"})],
        "threads": [Interval(Integral, 1, None, closed="left"), None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    flow_: Flow
    offset_: float
    n_features_in_: int

    def __init__(
        self,
        *,
        family: str = "residual",
        steps: int | None = None,
        time_limit: float | None = None,
        contamination: float = 0.1,
        validation_fraction: float | None = None,
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        regardless: bool = False,
        device: str = "cpu",
        precision: str = "f32",
        threads: int | None = None,
        verbose: int = 0,
        random_state: Any = 0,
    ) -> None:
        self.family = family
        self.steps = steps
        self.time_limit = time_limit
        self.contamination = contamination
        self.validation_fraction = validation_fraction
        self.model = model
        self.train = train
        self.regardless = regardless
        self.device = device
        self.precision = precision
        self.threads = threads
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> ResidualFlow:
        """Fits the density of the rows.

        Parameters
        ----------
        X : array or frame ``[n_samples, n_features]``
            The rows, finite numbers.
        y : ignored
            Is there for pipelines.
        sample_weight : array ``[n_samples]``, optional
            Weights, 0 or more: 2 is the row twice.

        Returns
        -------
        ResidualFlow
            The estimator itself.

        Raises
        ------
        ValueError
            For data that are none, and for a table whose density has no meaning, with all that was found.
        """
        self._validate_params()
        # what couples columns needs two of them
        least = 2 if self.family in COUPLING else 1
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2, ensure_min_features=least)
        weights: Doubles | None = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.flow_ = Flow.fit(
            self._named(X),
            sample_weight=weights,
            validation_fraction=self.validation_fraction,
            family=self.family,
            steps=self.steps,
            time_limit=self.time_limit,
            seed=seed_of(self.random_state),
            device=self.device,
            precision="f64" if self.precision == "f64" else "f32",
            threads=self.threads,
            model=self.model,
            train=self.train,
            regardless=self.regardless,
            progress=bool(self.verbose),
        )
        self.offset_ = _quantile(self.flow_.log_prob(X), weights, self.contamination)
        return self

    def _named(self, X: Any) -> Any:
        """The rows under the names of their columns, by which other programs find them."""
        names = getattr(self, "feature_names_in_", None)
        return X if names is None else _Named(X, [str(name) for name in names])

    def score_samples(self, X: Any) -> Doubles:
        """Computes log p of each row, ``[n_samples]``, nats, in the units of ``X``.

        Parameters
        ----------
        X : array or frame ``[n_samples, n_features]``
            The rows.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self.flow_.log_prob(X)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Computes the mean of log p over the rows, nats a row, by which :class:`~sklearn.model_selection.GridSearchCV` chooses.

        Parameters
        ----------
        X : array or frame ``[n_samples, n_features]``
            The rows.
        y : ignored
            Is there for pipelines.
        sample_weight : array ``[n_samples]``, optional
            The weights of the rows in the mean.
        """
        return float(np.average(self.score_samples(X), weights=None if sample_weight is None else np.asarray(sample_weight)))

    def decision_function(self, X: Any) -> Doubles:
        """Computes log p of each row less ``offset_``, ``[n_samples]``, nats: negative of outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.intp]:
        """Says 1 of rows like those of the fit and -1 of outliers, ``[n_samples]``."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Doubles:
        """Draws rows of the density.

        Parameters
        ----------
        n_samples : int, default=1
            Their number.
        random_state : int, RandomState instance or None, default=None
            The seed of the draw; with ``None`` it follows from that of the fit, so that the rows are the same at every call.

        Returns
        -------
        array ``[n_samples, n_features]``
            The rows, in the units of ``X``.
        """
        check_is_fitted(self)
        return self.flow_.sample(n_samples, seed=None if random_state is None else seed_of(random_state))


class _Named:
    """An array under the names of its columns."""

    def __init__(self, values: NDArray[Any], columns: list[str]) -> None:
        self.values = values
        self.columns = columns

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values if dtype is None else self.values.astype(dtype)


def _quantile(scores: Doubles, weights: Doubles | None, share: float) -> float:
    """The log p below which a share of the rows is, by their weights."""
    if weights is None:
        return float(np.quantile(scores, share, method="higher"))
    order = np.argsort(scores)
    below = np.cumsum(weights[order])
    return float(scores[order][np.searchsorted(below, share * below[-1], side="right")])
