"""A detector of PyOD.

>>> import numpy as np
>>> from resflow.pyod import FlowDetector
>>> detector = FlowDetector(steps=5).fit(np.random.default_rng(0).normal(size=(100, 2)))
>>> int(detector.labels_.sum())
10
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyod.models.base import BaseDetector
from sklearn.utils.validation import check_is_fitted

from ._arrays import Doubles
from ._estimator import ResidualFlow
from ._flow import Flow

__all__ = ["FlowDetector"]


class FlowDetector(BaseDetector):  # type: ignore[misc]
    """Outliers by a residual flow: the less likely a row is, the higher its score, which is -log p in nats.

    Parameters
    ----------
    contamination : float, default=0.1
        The share of outliers in the rows of the fit, above 0 and at most 0.5.
    family, steps, time_limit, model, train, device, precision, random_state
        As in :class:`resflow.ResidualFlow`.

    Attributes
    ----------
    flow_ : Flow
        The flow, which can do more.
    decision_scores_ : array ``[n_samples]``
        -log p of the rows of the fit, nats.
    threshold_ : float
        The score above which a row is an outlier.
    labels_ : array ``[n_samples]``
        1 of the outliers among the rows of the fit, else 0.
    """

    flow_: Flow

    def __init__(
        self,
        contamination: float = 0.1,
        *,
        family: str = "residual",
        steps: int | None = None,
        time_limit: float | None = None,
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        device: str = "cpu",
        precision: str = "f32",
        random_state: Any = 0,
    ) -> None:
        super().__init__(contamination=contamination)
        self.family = family
        self.steps = steps
        self.time_limit = time_limit
        self.model = model
        self.train = train
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> FlowDetector:
        """Fits the density of the rows ``[n_samples, n_features]``; ``y`` is ignored."""
        self._set_n_classes(y)
        estimator = ResidualFlow(
            family=self.family,
            steps=self.steps,
            time_limit=self.time_limit,
            model=self.model,
            train=self.train,
            device=self.device,
            precision=self.precision,
            random_state=self.random_state,
        )
        self.flow_ = estimator.fit(X).flow_
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> Doubles:
        """Computes -log p of each row, ``[n_samples]``, nats: the higher, the more of an outlier."""
        check_is_fitted(self, ["flow_"])
        return -self.flow_.log_prob(X)
