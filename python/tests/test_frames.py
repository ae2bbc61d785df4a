"""Tables of other libraries: names, kinds and missing cells."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import resflow
from resflow import Flow, ResidualFlow

NAMES = ["height", "weight", "age"]


def frames_of(rows: np.ndarray) -> dict[str, object]:
    """The same table in every library."""
    columns = {name: rows[:, i] for i, name in enumerate(NAMES)}
    table = pa.table(columns)
    return {
        "pandas": pd.DataFrame(columns),
        "pandas of arrow": pd.DataFrame(columns).astype("double[pyarrow]"),
        "pandas, nullable": pd.DataFrame(columns).astype("Float64"),
        "pandas with an index": pd.DataFrame(columns, index=pd.Index(range(7, 7 + len(rows)), name="id")),
        "polars": pl.DataFrame(columns),
        "pyarrow": table,
        "pyarrow in pieces": pa.concat_tables([table.slice(0, 10), table.slice(10)]),
        "a batch of pyarrow": table.to_batches()[0],
    }


def test_every_library_brings_the_same_table(rows: np.ndarray) -> None:
    named = None
    for name, frame in frames_of(rows).items():
        flow = Flow.fit(frame, steps=10)
        assert flow.column_names == NAMES, name
        named = named or flow
        assert flow.to_bytes() == named.to_bytes(), name
        assert np.array_equal(named.log_prob(frame), named.log_prob(rows)), name
    assert np.array_equal(named.log_prob(rows), Flow.fit(rows, steps=10).log_prob(rows))


def test_columns_are_found_by_their_names(rows: np.ndarray) -> None:
    flow = Flow.fit(pd.DataFrame(rows, columns=NAMES), steps=10)
    expected = flow.log_prob(rows)
    frame = pl.DataFrame({name: rows[:, i] for i, name in enumerate(NAMES)})
    with pytest.warns(UserWarning, match="another order"):
        assert np.array_equal(flow.log_prob(frame.select(["age", "height", "weight"])), expected)
    # what the model does not have may be anything
    more = frame.with_columns(pl.lit("x").alias("comment"))
    assert np.array_equal(flow.log_prob(more), expected)
    with pytest.raises(ValueError, match="age"):
        flow.log_prob(frame.drop("age"))
    # names that are none are no names
    numbered = pd.DataFrame(rows)
    assert Flow.fit(numbered, steps=2).column_names is None
    assert np.array_equal(flow.log_prob(numbered), expected)


def test_kinds_that_are_no_numbers_are_refused_by_name(rows: np.ndarray) -> None:
    many = [f"word {i}" for i in range(300)]
    for frame in (
        pd.DataFrame({"height": rows[:, 0], "species": many}),
        pl.DataFrame({"height": rows[:, 0], "species": many}),
        pd.DataFrame({"height": rows[:, 0], "species": [1, "b", None] * 100}),
        pl.DataFrame({"height": rows[:, 0], "species": [True, False, True] * 100}),
        pd.DataFrame({"height": rows[:, 0], "species": pd.date_range("2020-01-01", periods=300)}),
    ):
        with pytest.raises(ValueError, match="species"):
            Flow.fit(frame, steps=2)


def test_missing_cells_are_told_with_their_places(rows: np.ndarray) -> None:
    hole = rows[:, 0].copy()
    hole[3] = np.nan
    holes = [None if np.isnan(value) else float(value) for value in hole]
    for frame in (
        pd.DataFrame({"height": hole, "weight": rows[:, 1]}),
        pd.DataFrame({"height": pd.array(holes, dtype="Float64"), "weight": rows[:, 1]}),
        pl.DataFrame({"height": holes, "weight": rows[:, 1]}),
        pa.table({"height": pa.array(holes), "weight": rows[:, 1]}),
    ):
        with pytest.raises(ValueError, match=r"(?s)height.*missing|missing.*height"):
            Flow.fit(frame, steps=2)


def test_whole_numbers_and_single_precision_are_numbers() -> None:
    rng = np.random.default_rng(0)
    whole, single = rng.integers(0, 1000, size=200), rng.normal(size=200).astype(np.float32)
    expected = np.column_stack([whole, single]).astype(np.float64)
    for frame in (
        pl.DataFrame({"n": whole.astype(np.int16), "x": single}),
        pa.table({"n": whole.astype(np.uint32), "x": single}),
        pd.DataFrame({"n": pd.array(whole, dtype="Int64"), "x": single}),
    ):
        flow = Flow.fit(frame, steps=5)
        assert np.array_equal(flow.log_prob(frame), flow.log_prob(expected))
    large = pa.table({"n": np.array([2**53 + 1, 3] * 100), "x": single})
    with pytest.warns(UserWarning, match="beyond 2\\^53 rounded"):
        Flow.fit(large, steps=2)


def test_a_look_finds_what_a_fit_refuses(rows: np.ndarray) -> None:
    assert not [finding for finding in resflow.look(rows) if finding.severity == "grave"]
    frame = pd.DataFrame({"metres": rows[:, 0], "inches": 39.37 * rows[:, 0], "age": rows[:, 1]})
    grave = [finding for finding in resflow.look(frame) if finding.severity == "grave"]
    assert [finding.concern for finding in grave] == ["dependent"] and "inches" in grave[0].sentence and grave[0].remedy
    with pytest.raises(ValueError, match="inches"):
        Flow.fit(frame, steps=2)
    assert Flow.fit(frame, steps=2, regardless=True).column_names == ["metres", "inches", "age"]
    far = rows.copy()
    far[0, 0] = 1e9
    assert any(finding.concern == "outliers" and finding.columns == [0] for finding in resflow.look(far))
    with pytest.raises(ValueError, match="images"):
        resflow.look(np.zeros((3, 4, 4), dtype=np.uint8))


def test_contexts_may_be_frames(rows: np.ndarray) -> None:
    given = pd.DataFrame({"dose": rows[:, 0], "time": rows[:, 1]})
    flow = Flow.fit(pd.DataFrame({"response": rows[:, 2]}), given=given, steps=5)
    assert flow.column_names == ["response"] and flow.context_names == ["dose", "time"]
    expected = flow.condition(rows[:4, :2]).log_prob(rows[:4, 2:])
    found = flow.condition(given[:4]).log_prob(pd.DataFrame({"response": rows[:4, 2]}))
    assert np.array_equal(found, expected)


def test_the_estimator_takes_frames(rows: np.ndarray) -> None:
    for frame in (pd.DataFrame(rows, columns=NAMES), pl.DataFrame(rows, schema=NAMES)):
        estimator = ResidualFlow(steps=5).fit(frame)
        assert estimator.feature_names_in_.tolist() == NAMES == estimator.flow_.column_names
        assert np.array_equal(estimator.score_samples(frame), estimator.flow_.log_prob(rows))


def test_words_are_categories() -> None:
    rng = np.random.default_rng(0)
    species = rng.choice(["ada", "bee", "cod"], p=[0.5, 0.3, 0.2], size=400)
    height = rng.normal(size=400) + np.array([0.0, 4.0, 8.0])[np.unique(species, return_inverse=True)[1]]
    columns = {"height": height, "species": species, "weight": rng.normal(size=400)}
    dictionary = pa.array(list(species)).dictionary_encode()
    flows = []
    for frame in (
        pd.DataFrame(columns),
        pd.DataFrame(columns).astype({"species": "category"}),
        pl.DataFrame(columns),
        pl.DataFrame(columns, schema_overrides={"species": pl.Categorical}),
        pa.table({**columns, "species": dictionary}),
    ):
        flow = Flow.fit(frame, steps=150, train={"learning_rate": 1e-2})
        assert flow.column_names == ["height", "species", "weight"] and flow.context_columns is None
        assert flow.categories == {"species": ["ada", "bee", "cod"]} or set(flow.categories["species"]) == set(species)
        flows.append(flow)
        assert np.allclose(flow.log_prob(frame), flows[0].log_prob(pd.DataFrame(columns)), atol=1e-9)
    assert len({flow.to_bytes() for flow in flows}) == 1
    flow = flows[0]
    # log p of a row is that of its categories and of its numbers given these: of all words together the mass is 1
    at = {name: values[:1] for name, values in columns.items()}
    both = sum(np.exp(flow.log_prob(pd.DataFrame({**at, "species": [word]})))[0] for word in ("ada", "bee", "cod"))
    assert np.isfinite(both) and both > 0
    table = flow.sample_table(600, seed=1)
    assert list(table) == ["height", "species", "weight"]
    assert np.array_equal(np.column_stack([table["height"], table["weight"]]), flow.sample(600, seed=1))
    drawn = pd.DataFrame(table)
    # shares of 600 draws err by 0.02
    assert abs((drawn["species"] == "ada").mean() - (species == "ada").mean()) < 0.1
    assert drawn.groupby("species")["height"].mean()["cod"] - drawn.groupby("species")["height"].mean()["ada"] > 2
    assert np.isfinite(flow.log_prob(drawn)).all()
    with pytest.raises(ValueError, match="dog"):
        flow.log_prob(pd.DataFrame({**at, "species": ["dog"]}))
    with pytest.raises(ValueError):
        flow.log_prob(np.zeros((1, 2)))
    assert pickle.loads(pickle.dumps(flow)).categories == flow.categories


def test_categories_may_be_given_or_declared() -> None:
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 3, size=300)
    frame = pd.DataFrame({"x": rng.normal(size=300) + 3 * kind, "y": rng.normal(size=300), "kind": kind})
    flow = Flow.fit(frame, steps=20, categories=["kind"])
    assert set(flow.categories) == {"kind"} and len(flow.categories["kind"]) == 3
    assert np.isfinite(flow.log_prob(frame)).all()
    words = pd.DataFrame({"kind": np.array(["a", "b", "c"])[kind], "y": frame["y"]})
    conditional = Flow.fit(frame[["x"]], given=words, steps=150, train={"learning_rate": 1e-2})
    assert conditional.context_columns == 2 and set(conditional.categories) == {"kind"}
    at = conditional.condition(pd.DataFrame({"kind": ["a", "c"], "y": [0.0, 0.0]}))
    drawn = at.sample(200).reshape(2, 200)
    assert drawn[1].mean() - drawn[0].mean() > 2
