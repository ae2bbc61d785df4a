"""Loads a table, fits its density, draws its marginals beside those of the model, and flags the rows that are least likely.

    python examples/outliers.py [table.csv] [picture.png]

Without a table it takes four columns of the wines that come with scikit-learn. Needs pandas, scikit-learn and matplotlib.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_wine

from resflow import ResidualFlow


def load() -> pd.DataFrame:
    """The table that is named, or the wines."""
    if len(sys.argv) > 1:
        return pd.read_csv(sys.argv[1]).select_dtypes("number").dropna()
    wines = load_wine(as_frame=True)
    return wines.data[["alcohol", "flavanoids", "color_intensity", "proline"]]


def draw(table: pd.DataFrame, drawn: np.ndarray, outliers: np.ndarray, path: str) -> None:
    """Marginals of table and model on the diagonal, rows and samples in pairs below it."""
    names, d = list(table.columns), table.shape[1]
    figure, axes = plt.subplots(d, d, figsize=(2.2 * d, 2.2 * d), layout="constrained", squeeze=False)
    values = table.to_numpy(float)
    for row in range(d):
        for column in range(d):
            panel = axes[row][column]
            panel.tick_params(labelsize=6)
            if column > row:
                panel.set_axis_off()
            elif column == row:
                bins = np.linspace(values[:, row].min(), values[:, row].max(), 25)
                panel.hist(values[:, row], bins, density=True, color="0.75", label="table")
                panel.hist(drawn[:, row], bins, density=True, histtype="step", color="C0", label="model")
                panel.set_yticks([])
            else:
                panel.plot(drawn[:, column], drawn[:, row], ",", color="C0", alpha=0.6)
                panel.plot(values[~outliers, column], values[~outliers, row], ".", color="0.35", markersize=3)
                panel.plot(values[outliers, column], values[outliers, row], "o", color="C3", markersize=4)
                low, high = values.min(0), values.max(0)
                margin = 0.08 * (high - low)
                panel.set_xlim(low[column] - margin[column], high[column] + margin[column])
                panel.set_ylim(low[row] - margin[row], high[row] + margin[row])
            if row == d - 1:
                panel.set_xlabel(names[column], fontsize=8)
            if column == 0 and row > 0:
                panel.set_ylabel(names[row], fontsize=8)
    axes[0][0].legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    table = load()
    estimator = ResidualFlow(contamination=0.05).fit(table)
    scores = estimator.score_samples(table)
    outliers = estimator.predict(table) == -1
    print(f"{len(table)} rows of {table.shape[1]} columns; mean log p {scores.mean():.3f} nats")
    print(f"{outliers.sum()} rows with log p below {estimator.offset_:.2f} nats, the least likely first:")
    flagged = table[outliers].assign(log_p=scores[outliers].round(2))
    print(flagged.sort_values("log_p").to_string())
    path = sys.argv[2] if len(sys.argv) > 2 else "outliers.png"
    draw(table, estimator.sample(5000, random_state=1), outliers, path)
    print(f"{path} shows them")


if __name__ == "__main__":
    main()
