from collections.abc import Callable
from os import PathLike
from typing import Any, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = ["Conditioned", "DivergedError", "Frame", "Model", "Samples", "Trainable", "__version__", "devices", "fit", "look"]

__version__: str

_Doubles = NDArray[np.float64]
_Reals = NDArray[np.float64] | NDArray[np.float32]
_Columns = tuple[list[str] | None, int, list[int]]
_Inverted = tuple[_Doubles, _Doubles, _Doubles, list[str], float]

class DivergedError(ArithmeticError):
    """Training became non-finite: try a lower learning rate, or a smaller coefficient."""

@type_check_only
class _DeviceEntry(TypedDict):
    index: int
    name: str
    kind: str
    api: str
    driver: str
    best: bool

@type_check_only
class _ScoreEntry(TypedDict):
    mean: float
    mean_standard_error: float
    bias_bound: float
    most_evaluations: int
    estimator: str
    replicates: int
    status: list[str]
    log_prob: _Doubles
    standard_error: _Doubles
    log_det: _Doubles
    solve_error: _Doubles

def devices() -> list[_DeviceEntry]:
    """Lists the GPUs that are there, as dicts."""

def look(samples: Samples) -> str: ...
@final
class Frame:
    @staticmethod
    def of_arrow(frame: Any, model: _Columns | None, categories: list[str], missing: bool) -> Frame: ...
    @staticmethod
    def of_columns(
        columns: list[tuple[str, _Doubles | tuple[str, list[str | None]] | str]],
        model: _Columns | None,
        categories: list[str],
        missing: bool,
    ) -> Frame: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def rows(self) -> int: ...

@final
class Samples:
    @staticmethod
    def rows(
        values: _Reals | Frame,
        names: list[str] | None = None,
        context: _Reals | Frame | None = None,
        context_names: list[str] | None = None,
        weights: _Doubles | None = None,
        missing: bool = False,
    ) -> Samples: ...
    @staticmethod
    def images(
        values: NDArray[np.uint8],
        context: _Reals | Frame | None = None,
        context_names: list[str] | None = None,
        weights: _Doubles | None = None,
    ) -> Samples: ...

def fit(
    samples: Samples,
    *,
    validation: Samples | None,
    validation_fraction: float | None,
    family: str | None,
    model: str | None,
    train: str | None,
    steps: int | None,
    seconds: float | None,
    seed: int,
    device: str,
    precision: str | None,
    threads: int | None,
    regardless: bool,
    missing: bool,
    observer: Callable[[int, float, float, float, float, tuple[float, float, bool] | None, bool], Any] | None,
    keep: bool,
) -> Model: ...

@final
class Model:
    @staticmethod
    def load(path: str | PathLike[str], device: str, precision: str | None, threads: int | None) -> Model: ...
    @staticmethod
    def from_bytes(bytes: bytes, device: str, precision: str | None, threads: int | None) -> Model: ...
    def to_bytes(self) -> bytes: ...
    def save(self, path: str | PathLike[str]) -> None: ...
    def describe(self) -> str: ...
    def sample_shape(self) -> list[int]: ...
    def sample_columns(self) -> _Columns | None: ...
    def context_columns(self) -> _Columns | None: ...
    def categories(self) -> tuple[list[tuple[str, list[str]]], bool] | None: ...
    def sample_table(self, count: int, seed: int | None) -> list[tuple[str, _Doubles | list[str]]]: ...
    def device(self) -> str: ...
    def log_prob(self, samples: Samples, seed: int | None) -> _Doubles: ...
    def score(self, samples: Samples, seed: int | None) -> _ScoreEntry: ...
    def percentile(self, samples: Samples, seed: int | None) -> _Doubles: ...
    def log_prob_and_gradient(self, samples: Samples, seed: int | None) -> tuple[_Doubles, _Doubles]: ...
    def impute(self, samples: Samples, draws: int, statistic: str | None, seed: int | None) -> _Doubles: ...
    def encode(self, samples: Samples, seed: int | None) -> _Doubles: ...
    def decode(self, z: _Reals | Frame) -> _Inverted: ...
    def sample(self, count: int, seed: int | None) -> _Inverted: ...
    def sample_and_log_prob(self, count: int, seed: int | None) -> tuple[_Doubles, _Doubles]: ...
    def condition(self, contexts: _Reals | Frame) -> Conditioned: ...

@final
class Conditioned:
    def contexts(self) -> int: ...
    def score(self, samples: Samples, seed: int | None) -> _ScoreEntry: ...
    def log_prob_and_gradient(self, samples: Samples, seed: int | None) -> tuple[_Doubles, _Doubles, _Doubles]: ...
    def sample(self, each: int, seed: int | None) -> _Inverted: ...
    def sample_and_log_prob(self, each: int, seed: int | None) -> tuple[_Doubles, _Doubles]: ...
    def encode(self, samples: Samples, seed: int | None) -> _Doubles: ...
    def decode(self, z: _Reals | Frame) -> _Inverted: ...

@final
class Trainable:
    @staticmethod
    def from_bytes(bytes: bytes, device: str, precision: str | None, threads: int | None) -> Trainable: ...
    def to_bytes(self) -> bytes: ...
    def model(self, device: str, precision: str | None, threads: int | None) -> Model: ...
    def parameters(self) -> _Doubles: ...
    def set_parameters(self, flat: _Doubles) -> None: ...
    def log_prob(self, samples: Samples, seed: int) -> _Doubles: ...
    def input_gradients(self, samples: Samples, seed: int) -> tuple[_Doubles, _Doubles, _Doubles | None]: ...
    def parameter_gradient(self, samples: Samples, weights: _Doubles, seed: int) -> _Doubles: ...
