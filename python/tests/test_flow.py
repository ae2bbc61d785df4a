"""Flows: what they compute, and that it is one thing however it is asked for."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import resflow
from resflow import Flow


def test_densities_are_those_of_the_data() -> None:
    # of independent normals log p is known; half a nat off would be a mistake, the fit's own error is below a tenth
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 20.0])
    x = rng.normal(size=(2000, 2)) * scale
    flow = Flow.fit(x, steps=50)
    fresh = rng.normal(size=(500, 2)) * scale
    exact = -0.5 * ((fresh / scale) ** 2).sum(1) - np.log(2 * np.pi) - np.log(scale).sum()
    assert abs(flow.log_prob(fresh).mean() - exact.mean()) < 0.1
    # units: ten times the numbers are log 10 nats less for each column
    tenfold = Flow.fit(10 * x, steps=50)
    difference = flow.log_prob(fresh) - tenfold.log_prob(10 * fresh)
    assert np.allclose(difference, 2 * np.log(10), atol=0.05)


def test_shapes_and_errors_of_scores(flow: Flow, rows: np.ndarray) -> None:
    log_prob, error = flow.log_prob(rows, return_standard_error=True)
    assert log_prob.shape == error.shape == (300,) and log_prob.dtype == np.float64
    # three columns: the log determinant is exact
    assert not error.any()
    score = flow.score(rows)
    assert np.array_equal(score.log_prob, log_prob)
    assert score.mean == pytest.approx(log_prob.mean(), abs=1e-12)
    assert 0 < score.mean_standard_error < 1 and set(score.status) == {"converged"}
    weighted = flow.score(rows, sample_weight=np.arange(300.0))
    assert weighted.mean == pytest.approx(np.average(log_prob, weights=np.arange(300.0)), abs=1e-9)


def test_the_gradient_is_that_of_differences(rows: np.ndarray) -> None:
    flow = Flow.fit(rows, steps=40, precision="f64")
    x = rows[:5]
    log_prob, gradient = flow.log_prob_and_gradient(x)
    assert np.allclose(log_prob, flow.log_prob(x), atol=1e-9)
    h = 1e-5
    for column in range(3):
        step = np.zeros(3)
        step[column] = h
        difference = (flow.log_prob(x + step) - flow.log_prob(x - step)) / (2 * h)
        assert np.allclose(difference, gradient[:, column], rtol=1e-4, atol=1e-5)


def test_latents_are_inverted(flow: Flow, rows: np.ndarray) -> None:
    z = flow.encode(rows)
    assert z.shape == (300, 3) and abs(z.mean()) < 0.3
    assert np.allclose(flow.decode(z), rows, rtol=1e-3, atol=1e-4)
    decoded = flow.decode(z, with_reports=True)
    assert decoded.round_trip < 1e-4 and set(decoded.status) <= {"converged", "at the float floor"}
    assert decoded.residual.shape == decoded.error_bound.shape == (300,)


def test_samples_are_functions_of_the_seed(flow: Flow) -> None:
    assert flow.sample(7).shape == (7, 3)
    assert np.array_equal(flow.sample(7), flow.sample(7))
    assert np.array_equal(flow.sample(7, seed=3), flow.sample(7, seed=3))
    assert not np.array_equal(flow.sample(7, seed=3), flow.sample(7, seed=4))
    samples, log_prob = flow.sample_and_log_prob(5)
    assert np.array_equal(samples, flow.sample(5)) and np.allclose(log_prob, flow.log_prob(samples))


def test_percentiles_are_among_the_rows_of_the_fit(flow: Flow, rows: np.ndarray) -> None:
    percentile = flow.percentile(rows)
    assert percentile.min() < 5 and percentile.max() > 95
    order = np.argsort(flow.log_prob(rows))
    assert (np.diff(percentile[order]) >= 0).all()
    assert flow.percentile(np.full((1, 3), 50.0))[0] == 0


def test_whatever_is_handed_over_is_the_same_rows(flow: Flow, rows: np.ndarray) -> None:
    expected = flow.log_prob(rows)
    for same in (rows.tolist(), np.asfortranarray(rows), rows[::-1][::-1], rows.astype(object), rows.astype(">f8")):
        assert np.array_equal(flow.log_prob(same), expected)
    single = rows.astype(np.float32)
    assert np.array_equal(flow.log_prob(single), flow.log_prob(single.astype(np.float64)))
    whole = np.arange(6).reshape(2, 3)
    assert np.array_equal(flow.log_prob(whole), flow.log_prob(whole.astype(float)))
    readonly = rows.copy()
    readonly.flags.writeable = False
    assert np.array_equal(flow.log_prob(readonly), expected)
    assert flow.log_prob(np.empty((0, 3))).shape == (0,)


def test_noise_is_a_function_of_the_seed() -> None:
    # a column on a grid is spread by noise
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.poisson(4, size=300), rng.normal(size=300)]).astype(float)
    flow = Flow.fit(x, steps=5)
    log_prob, error = flow.log_prob(x, return_standard_error=True, seed=1)
    assert error.any() and np.array_equal(flow.log_prob(x, seed=1), log_prob)
    assert not np.array_equal(flow.log_prob(x, seed=2), log_prob)
    assert np.array_equal(flow.log_prob(x), flow.log_prob(x))


def test_a_fit_is_a_function_of_its_seed(flow: Flow, rows: np.ndarray) -> None:
    assert Flow.fit(rows, steps=60, seed=5).to_bytes() == flow.to_bytes()
    assert Flow.fit(rows, steps=60, seed=5, threads=1).to_bytes() == flow.to_bytes()
    assert Flow.fit(rows, steps=60, seed=6).to_bytes() != flow.to_bytes()


def test_files_are_the_flow(flow: Flow, rows: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    flow.save(path)
    assert path.read_bytes() == flow.to_bytes()
    for again in (Flow.load(path), Flow.load(str(path)), Flow.from_bytes(flow.to_bytes()), pickle.loads(pickle.dumps(flow))):
        assert np.array_equal(again.log_prob(rows), flow.log_prob(rows))
        assert np.array_equal(again.sample(3), flow.sample(3))
    double = Flow.load(path, precision="f64")
    assert "f64" in double.device and np.allclose(double.log_prob(rows), flow.log_prob(rows), atol=1e-3)


def test_settings_are_by_name(rows: np.ndarray) -> None:
    flow = Flow.fit(rows, family="nsf", steps=5, model={"blocks": 2, "hidden": [16]}, train={"batch": 32})
    described = flow.inspect()
    assert described["family"] == "nsf" and described["config"]["rows"]["blocks"] == 2
    assert described["parameters"] > 0 and described["provenance"]["seed"] == 0
    for wrong, words in [
        ({"model": {"block": 2}}, "unknown field `block`"),
        ({"train": {"batch": 0}}, "`batch` is 0"),
        ({"family": "glaw"}, "glaw"),
        ({"precision": "f16"}, "precision is"),
        ({"device": "abacus"}, "device is"),
        ({"threads": 0}, "threads is 0"),
        ({"steps": 5, "time_limit": 1.0}, "exclude each other"),
        ({"time_limit": -1.0}, "time_limit"),
        ({"validation_given": rows}, "validation_given"),
        ({"on_interrupt": "stay"}, "on_interrupt"),
    ]:
        with pytest.raises(ValueError, match=words):
            Flow.fit(rows, **wrong)


def test_what_is_no_data_is_said_so(flow: Flow, rows: np.ndarray, tmp_path: Path) -> None:
    hole = rows.copy()
    hole[4, 1] = np.nan
    for wrong, error, words in [
        (hole, ValueError, "cell of column 2 is missing"),
        (np.full((2, 3), np.inf), ValueError, "inf"),
        (rows[:, :2], ValueError, "2 columns, the model is for 3|has 2 columns"),
        (rows[0], ValueError, r"x has shape \(3,\)"),
        (np.zeros((2, 3, 4, 5)), ValueError, "shape"),
        (rows + 1j, ValueError, "Complex data not supported"),
        ([["a", "b", "c"]], ValueError, "not made of numbers"),
        (np.zeros((2, 3), dtype="datetime64[s]"), TypeError, "times"),
    ]:
        with pytest.raises(error, match=words):
            flow.log_prob(wrong)
    with pytest.raises(ValueError, match="one value|constant"):
        Flow.fit(np.ones((50, 2)))
    with pytest.raises(ValueError, match="sample_weight"):
        Flow.fit(rows, sample_weight=np.ones((300, 2)))
    with pytest.raises(ValueError, match="weight"):
        Flow.fit(rows, sample_weight=-np.ones(300))
    with pytest.raises(FileNotFoundError) as missing:
        Flow.load(tmp_path / "nothing.safetensors")
    assert missing.value.filename.endswith("nothing.safetensors")
    with pytest.raises(OSError, match="nowhere"):
        flow.save(tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(ValueError, match="not a resflow file"):
        Flow.from_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="z has shape"):
        flow.decode([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="no conditional density"):
        flow.condition([[1.0]])
    with pytest.raises((ValueError, OverflowError)):
        flow.sample(-1)
    with pytest.raises(TypeError, match="Flow.fit"):
        Flow()


def test_a_diverging_fit_says_so(rows: np.ndarray) -> None:
    with pytest.raises(resflow.DivergedError, match="learning rate"):
        Flow.fit(rows, steps=200, family="glow", train={"learning_rate": 1e30, "clip": 0.0, "warmup": 0})


def test_threads_share_a_flow(flow: Flow, rows: np.ndarray) -> None:
    expected = flow.log_prob(rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: flow.log_prob(rows), range(16)))
        fits = list(pool.map(lambda seed: Flow.fit(rows, steps=5, seed=seed).to_bytes(), [1, 2, 1, 2]))
    assert all(np.array_equal(scores, expected) for scores in found)
    assert fits[0] == fits[2] != fits[1] == fits[3]


def test_conditional_flows(conditional: Flow) -> None:
    assert conditional.context_columns == 2 and conditional.dimension == 2
    at = conditional.condition([[0.5, 0.2], [-0.5, 0.9]])
    assert at.contexts == 2
    samples = at.sample(200)
    assert samples.shape == (400, 2)
    means = samples[:200, 0].mean(), samples[200:, 0].mean()
    # the truths are 0.5 and -0.5; the error of a mean of 200 is 0.02
    assert means[0] > 0.2 and means[1] < -0.2
    x = samples[[0, 200]]
    log_prob, gradient, gradient_given = at.log_prob_and_gradient(x)
    assert gradient.shape == gradient_given.shape == (2, 2)
    assert np.allclose(log_prob, at.log_prob(x), atol=1e-9)
    h = 1e-5
    for column in range(2):
        step = np.zeros(2)
        step[column] = h
        given = np.array([[0.5, 0.2], [-0.5, 0.9]])
        up, down = conditional.condition(given + step), conditional.condition(given - step)
        difference = (up.log_prob(x) - down.log_prob(x)) / (2 * h)
        assert np.allclose(difference, gradient_given[:, column], rtol=1e-4, atol=1e-5)
    z = at.encode(x)
    again = at.decode(z, with_reports=True)
    assert np.abs(again.samples - x).max() < 1e-9 and set(again.status) == {"converged"}
    assert np.allclose(conditional.condition([[0.5, 0.2]]).encode(x)[0], z[0], atol=1e-9)
    assert np.allclose(conditional.condition([[-0.5, 0.9]]).decode(z)[1], again.samples[1], atol=1e-9)
    with pytest.raises(ValueError, match="context"):
        at.encode(np.zeros((3, 2)))
    one = conditional.condition([[0.5, 0.2]])
    assert np.allclose(one.log_prob(x)[0], at.log_prob(x)[0], atol=1e-9)
    assert np.array_equal(one.sample_and_log_prob(3)[0], one.sample(3))
    with pytest.raises(ValueError, match="2"):
        conditional.condition([[0.5]])
    with pytest.raises(ValueError):
        conditional.log_prob(x)


def test_images_come_and_go_as_images() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(60, 4, 4), dtype=np.uint8)
    flow = Flow.fit(images, steps=3, model={"filters": 4})
    assert flow.sample_shape == (4, 4, 1) and flow.dimension == 16
    drawn = flow.sample(5)
    assert drawn.shape == (5, 4, 4, 1) and drawn.min() >= 0 and drawn.max() <= 1
    assert flow.log_prob(images[:5]).shape == flow.log_prob(drawn).shape == (5,)
    z = flow.encode(drawn)
    assert z.shape == (5, 16) and np.allclose(flow.decode(z), drawn, atol=1e-2)
    with pytest.raises(ValueError, match="shape"):
        flow.log_prob(np.zeros((2, 5, 4, 1)))
    # channels are last here and first in the library
    colours = Flow.fit(rng.integers(0, 256, size=(60, 4, 6, 3), dtype=np.uint8), steps=3, model={"filters": 4})
    drawn, log_prob = colours.sample_and_log_prob(4)
    assert drawn.shape == (4, 4, 6, 3) and np.allclose(colours.log_prob(drawn), log_prob, rtol=1e-6)
    assert not np.allclose(colours.log_prob(drawn[..., ::-1]), log_prob, rtol=1e-6)


def test_devices(flow: Flow, rows: np.ndarray) -> None:
    assert "ndarray" in repr(flow)
    found = resflow.devices()
    assert found or not os.environ.get("RESFLOW_REQUIRE_GPU"), "no adapter is there"
    if not found:
        with pytest.raises((RuntimeError, ValueError), match="GPU|adapter|device"):
            Flow.from_bytes(flow.to_bytes(), device="gpu")
        return
    assert {"index", "name", "kind", "api", "driver", "best"} == set(found[0])
    moved = Flow.from_bytes(flow.to_bytes(), device=f"gpu:{os.environ.get('RESFLOW_ADAPTER', found[0]['index'])}")
    assert np.allclose(moved.log_prob(rows), flow.log_prob(rows), atol=1e-3)
    assert np.allclose(moved.sample(5), flow.sample(5), atol=1e-2)
    # onto the processor, which every machine has
    assert "ndarray" in repr(pickle.loads(pickle.dumps(moved)))


def test_help_reads_well() -> None:
    import pydoc

    page = pydoc.plain(pydoc.render_doc(Flow.log_prob))
    for words in ("[n, d]", "nats", "seed", "ValueError", "return_standard_error"):
        assert words in page, page
    for name in ("fit", "load", "save", "sample", "encode", "decode", "score", "percentile", "condition", "inspect"):
        assert getattr(Flow, name).__doc__, name


def test_the_bar_is_on_stderr(rows: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    Flow.fit(rows, steps=5, progress=True)
    shown = capfd.readouterr()
    assert "100 %" in shown.err and "step 5" in shown.err and not shown.out


def test_flows_are_copied_whole(flow: Flow, rows: np.ndarray) -> None:
    file = io.BytesIO()
    pickle.dump({"flow": flow, "rows": rows}, file)
    file.seek(0)
    held = pickle.load(file)
    assert np.array_equal(held["flow"].log_prob(held["rows"]), flow.log_prob(rows))
