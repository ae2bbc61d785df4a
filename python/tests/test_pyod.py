"""The detector of PyOD."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

pytest.importorskip("pyod", reason="PyOD is optional")

from resflow import Flow  # noqa: E402
from resflow.pyod import FlowDetector  # noqa: E402


def test_it_is_a_detector(rows: np.ndarray) -> None:
    far = np.vstack([rows[:285], np.full((15, 3), 12.0) + np.arange(15.0)[:, None]])
    detector = FlowDetector(contamination=0.05, steps=20).fit(far)
    assert detector.labels_.sum() == 15
    assert detector.decision_scores_.shape == (300,) and detector.threshold_ > np.median(detector.decision_scores_)
    assert np.array_equal(detector.decision_function(far), -detector.flow_.log_prob(far))
    assert detector.predict([[50.0, 50.0, 50.0]]).tolist() == [1]
    proba = detector.predict_proba(far)
    assert proba.shape == (300, 2) and np.allclose(proba.sum(1), 1)
    labels, confidence = detector.predict(far, return_confidence=True)
    assert labels.shape == confidence.shape == (300,)
    assert clone(detector).get_params() == detector.get_params()
    assert isinstance(detector.flow_, Flow)
