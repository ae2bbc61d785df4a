"""The package and the program `resflow` are one thing."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resflow import Flow, ResidualFlow

NAMES = ["height", "weight", "age"]


def run(program: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file, each number as Python reads it, which is exact."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def tensors(data: bytes) -> tuple[dict[str, object], bytes]:
    """The document and the tensors of a model file, which is in the format safetensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("program")
    pd.DataFrame(rows, columns=NAMES).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.mark.parametrize("family", ["residual", "nsf"])
def test_a_fit_is_the_program_s(program: str, folder: Path, rows: np.ndarray, family: str) -> None:
    out = f"run-{family}"
    run(program, "fit", "table.csv", "--out", out, "--model", family, "--steps", 40, "--seed", 7, cwd=folder)
    frame = pd.DataFrame(rows, columns=NAMES)
    flow = Flow.fit(frame, family=family, steps=40, seed=7)
    theirs, own = (folder / out / "model.safetensors").read_bytes(), flow.to_bytes()
    # every tensor, bit for bit
    assert tensors(theirs)[1] == tensors(own)[1]
    # and so are the numbers that are computed of them, from either file
    run(program, "score", out, "table.csv", "--out", f"{out}.csv", "--seed", 3, cwd=folder)
    scores = columns_of(folder / f"{out}.csv")
    for found in (flow, Flow.load(folder / out / "model.safetensors")):
        assert np.array_equal(found.log_prob(frame, seed=3), scores["log_prob"])
    run(program, "sample", out, "-n", 20, "--seed", 4, "--out", f"{out}-samples.csv", cwd=folder)
    samples = columns_of(folder / f"{out}-samples.csv")
    assert list(samples) == NAMES
    drawn = np.column_stack(list(samples.values()))
    assert np.array_equal(flow.sample(20, seed=4), drawn)
    assert np.array_equal(ResidualFlow(family=family, steps=40, random_state=7).fit(frame).sample(20, 4), drawn)
    # the program reads the package's files
    flow.save(folder / f"{out}-own.safetensors")
    own_scores = json.loads(run(program, "score", f"{out}-own.safetensors", "table.csv", "--seed", 3, "--json", cwd=folder))
    assert own_scores["mean_log_prob"] == flow.score(frame, seed=3).mean


def test_settings_are_those_of_a_configuration_file(program: str, folder: Path, rows: np.ndarray) -> None:
    (folder / "settings.toml").write_text("[flow]\nblocks = 3\nhidden = [16]\n[train]\nbatch = 40\nlearning_rate = 2e-3\n")
    run(program, "fit", "table.csv", "--out", "set", "--config", "settings.toml", "--steps", 30, cwd=folder)
    flow = Flow.fit(rows, steps=30, model={"blocks": 3, "hidden": [16]}, train={"batch": 40, "learning_rate": 2e-3})
    assert tensors((folder / "set" / "model.safetensors").read_bytes())[1] == tensors(flow.to_bytes())[1]
    # a run's state is read as its best model
    state = Flow.load(folder / "set" / "checkpoint.safetensors")
    assert np.array_equal(state.log_prob(rows, seed=1), flow.log_prob(rows, seed=1))


def test_weights_and_contexts_are_the_program_s(program: str, folder: Path, rows: np.ndarray) -> None:
    weights = np.arange(1.0, 301.0)
    pd.DataFrame(np.column_stack([rows, weights]), columns=[*NAMES, "w"]).to_csv(
        folder / "weighted.csv", index=False
    )
    run(program, "fit", "weighted.csv", "--weight", "w", "--out", "weighted", "--steps", 20, cwd=folder)
    flow = Flow.fit(pd.DataFrame(rows, columns=NAMES), sample_weight=weights, steps=20)
    assert tensors((folder / "weighted" / "model.safetensors").read_bytes())[1] == tensors(flow.to_bytes())[1]
    run(program, "fit", "table.csv", "--given", "age", "--out", "given", "--steps", 20, cwd=folder)
    frame = pd.DataFrame(rows, columns=NAMES)
    conditional = Flow.fit(frame[["height", "weight"]], given=frame[["age"]], steps=20)
    assert conditional.context_names == ["age"]
    assert tensors((folder / "given" / "model.safetensors").read_bytes())[1] == tensors(conditional.to_bytes())[1]
