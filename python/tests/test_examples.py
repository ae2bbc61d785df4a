"""The examples run as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


def test_the_script_draws_and_flags(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "examples" / "outliers.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "178 rows of 4 columns" in done.stdout and "9 rows with log p below" in done.stdout
    assert (tmp_path / "outliers.png").stat().st_size > 20_000


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    notebook = json.loads((HERE / "examples" / "first_steps.ipynb").read_text())
    names: dict[str, object] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    mass = float(re.search(r"mass on the grid ([0-9.]+)", printed)[1])
    assert 0.9 < mass < 1.05
    assert "[ 1  1 -1]" in printed or "[ 1 -1 -1]" in printed, printed


def test_the_readme_s_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    exec(compile(blocks[0], "README.md", "exec"), {})  # noqa: S102
    assert "9 of 178 rows are outliers" in capsys.readouterr().out
