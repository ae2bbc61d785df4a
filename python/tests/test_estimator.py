"""The estimator within scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from resflow import Flow, ResidualFlow

# The rows that are set aside for validation are drawn among the rows, of which a repeated one is several and a weighted one is
# one; the fits of both have the same objective, not the same draws.
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "validation rows are drawn, and a repeated row is several"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["residual", "nsf"])
def test_it_is_an_estimator(family: str) -> None:
    found = check_estimator(
        ResidualFlow(family=family, steps=20), expected_failed_checks=EXPECTED, on_skip=None, on_fail="raise"
    )
    passed = [check for check in found if check["status"] == "passed"]
    assert len(passed) > 45


def test_it_is_the_flow(rows: np.ndarray, flow: Flow) -> None:
    estimator = ResidualFlow(steps=60, random_state=5).fit(rows)
    assert estimator.flow_.to_bytes() == flow.to_bytes()
    assert np.array_equal(estimator.score_samples(rows), flow.log_prob(rows))
    assert estimator.score(rows) == pytest.approx(flow.log_prob(rows).mean())
    assert np.array_equal(estimator.sample(4), flow.sample(4))
    assert np.array_equal(estimator.sample(4, random_state=9), flow.sample(4, seed=9))


def test_outliers_are_the_least_likely_rows(rows: np.ndarray) -> None:
    for contamination in (0.01, 0.1, 0.5):
        estimator = ResidualFlow(steps=20, contamination=contamination)
        found = estimator.fit_predict(rows)
        assert (found == -1).sum() == contamination * 300
        scores = estimator.score_samples(rows)
        assert scores[found == -1].max() < scores[found == 1].min()
    assert estimator.predict([[40.0, 40.0, 40.0]]) == [-1]
    with pytest.raises(ValueError, match="contamination"):
        ResidualFlow(contamination=0.7).fit(rows)


def test_weights_move_the_threshold_and_the_density(rows: np.ndarray) -> None:
    weights = np.where(rows[:, 0] > 0, 1.0, 0.0)
    estimator = ResidualFlow(steps=20).fit(rows, sample_weight=weights)
    drawn = estimator.sample(500)
    # all weight is on positive values of the first column
    assert (drawn[:, 0] > 0).mean() > 0.8
    kept = estimator.predict(rows[weights > 0])
    assert abs((kept == -1).mean() - 0.1) < 0.01
    assert estimator.score(rows, sample_weight=weights) == pytest.approx(
        np.average(estimator.score_samples(rows), weights=weights)
    )


def test_pipelines_and_searches(rows: np.ndarray) -> None:
    pipeline = make_pipeline(StandardScaler(), PCA(2), ResidualFlow(steps=10))
    assert pipeline.fit(rows).score_samples(rows).shape == (300,)
    assert pipeline.predict(rows).shape == (300,)
    scores = cross_val_score(ResidualFlow(steps=10), rows, cv=3)
    assert scores.shape == (3,) and np.isfinite(scores).all()
    search = GridSearchCV(ResidualFlow(steps=10), {"family": ["residual", "nsf"], "model": [None, {"blocks": 1}]}, cv=2)
    search.fit(rows)
    assert search.best_params_["family"] in ("residual", "nsf") and np.isfinite(search.best_score_)


def test_clones_and_random_states(rows: np.ndarray) -> None:
    estimator = ResidualFlow(steps=5, random_state=3)
    twin = clone(estimator)
    assert twin.get_params() == estimator.get_params()
    assert np.array_equal(twin.fit(rows).score_samples(rows), estimator.fit(rows).score_samples(rows))
    generator = ResidualFlow(steps=5, random_state=np.random.RandomState(0))
    first = generator.fit(rows).flow_.to_bytes()
    assert generator.fit(rows).flow_.to_bytes() != first
    again = ResidualFlow(steps=5, random_state=np.random.RandomState(0)).fit(rows)
    assert again.flow_.to_bytes() == first


def test_pickles_between_processes(rows: np.ndarray, tmp_path) -> None:
    estimator = ResidualFlow(steps=10).fit(rows)
    (tmp_path / "estimator.pickle").write_bytes(pickle.dumps(estimator))
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import pickle, numpy as np\n"
        f"e = pickle.load(open({str(tmp_path / 'estimator.pickle')!r}, 'rb'))\n"
        f"np.save({str(tmp_path / 'scores.npy')!r}, e.decision_function(np.load({str(tmp_path / 'rows.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert np.array_equal(np.load(tmp_path / "scores.npy"), estimator.decision_function(rows))


def test_names_of_columns_are_checked(rows: np.ndarray) -> None:
    frame = pd.DataFrame(rows, columns=["height", "weight", "age"])
    estimator = ResidualFlow(steps=5).fit(frame)
    assert estimator.feature_names_in_.tolist() == ["height", "weight", "age"]
    assert estimator.flow_.column_names == ["height", "weight", "age"]
    assert np.array_equal(estimator.score_samples(frame), estimator.flow_.log_prob(rows))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[["age", "height", "weight"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        estimator.predict(rows)


def test_mistakes_are_said_so(rows: np.ndarray) -> None:
    hole = rows.copy()
    hole[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ResidualFlow(steps=5).fit(hole)
    estimator = ResidualFlow(steps=5)
    with pytest.raises(NotFittedError):
        estimator.score_samples(rows)
    with pytest.raises(ValueError, match="family"):
        ResidualFlow(family="glaw").fit(rows)
    with pytest.raises(ValueError, match="unknown field"):
        ResidualFlow(model={"block": 1}).fit(rows)
    with pytest.raises(ValueError, match="one value|constant"):
        ResidualFlow(steps=5).fit(np.column_stack([rows, np.ones(300)]))
