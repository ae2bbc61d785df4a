"""What people hand over, as arrays and samples of the core."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._core import Frame, Samples

Doubles = NDArray[np.float64]
Reals = NDArray[np.float64] | NDArray[np.float32]
# the columns of a model: their names, how many there are, and the places of those that hold categories
Columns = tuple[list[str] | None, int, list[int]]


def column_names(x: Any) -> list[str] | None:
    """The names of an array's columns, where it brings some that are text, all of them; ``None`` of anything else."""
    columns = getattr(x, "columns", None)
    if columns is None or callable(columns):
        return None
    names = list(columns)
    return names if names and all(isinstance(name, str) for name in names) else None


def as_frame(x: Any, model: Columns | None, categories: Sequence[str] = (), missing: bool = False) -> Frame | None:
    """The rows of a frame whose columns have names, by the library's rules; ``None`` of anything else.

    Of a model's columns, where there is one, those of its names are taken, in its order. Else columns of few words are categories,
    and those that are declared to be.
    """
    if type(x).__module__.partition(".")[0] == "pandas":
        if getattr(x, "ndim", 0) != 2 or column_names(x) is None:
            return None
        # without what numbers or names the rows, which is no column
        columns = [(name, _pandas_column(x.iloc[:, i])) for i, name in enumerate(x.columns)]
        found = Frame.of_columns(columns, model, list(categories), missing)
    elif hasattr(x, "__arrow_c_stream__") and getattr(x, "ndim", 2) == 2 and not hasattr(x, "dtype"):
        found = Frame.of_arrow(x, model, list(categories), missing)
    else:
        return None
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=5)
    return found


def _pandas_column(column: Any) -> Doubles | tuple[str, list[str | None]] | str:
    """The numbers of a column of pandas, NaN where one is missing; the name of its type with its words, or alone."""
    kind = column.dtype
    numeric = getattr(kind, "kind", "O") in "iuf" or getattr(kind, "_is_numeric", False)
    if not numeric or getattr(kind, "_is_boolean", False):
        missing = column.isna()
        cells = [None if gone else cell for cell, gone in zip(column.tolist(), missing.tolist(), strict=True)]
        words = [cell for cell in cells if isinstance(cell, str) or cell is None]
        return (str(kind), words) if len(words) == len(cells) and not all(missing) else str(kind)
    numbers: Doubles = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def as_numbers(x: ArrayLike, what: str) -> NDArray[Any]:
    """An array of native ``float64`` or ``float32``; the latter only if it was one."""
    array: NDArray[Any] = np.asarray(x)
    if array.dtype == np.float32 or array.dtype == np.float64:
        return array
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {what} is of {array.dtype}, and densities are of real numbers")
    if array.dtype.kind in "mM":
        raise TypeError(f"{what} is of {array.dtype}: make numbers of times first, such as seconds since the first one")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} is of {array.dtype}, which is not made of numbers: {error}") from None


def as_rows(x: ArrayLike, what: str) -> Reals:
    """An array ``[n, d]``."""
    array = as_numbers(x, what)
    if array.ndim != 2:
        hint = "; one row is x[None, :], one column x[:, None]" if array.ndim == 1 else ""
        raise ValueError(f"{what} has shape {array.shape}, expected [n, d]{hint}")
    return array


def as_table(x: Any, what: str, model: Columns | None, categories: Sequence[str] = ()) -> Reals | Frame:
    """A table ``[n, d]`` of an array or a frame."""
    frame = as_frame(x, model, categories)
    return as_rows(x, what) if frame is None else frame


def as_vector(x: ArrayLike, what: str) -> Doubles:
    """An array ``[n]`` of doubles."""
    array = as_numbers(x, what).astype(np.float64, copy=False)
    if array.ndim != 1:
        raise ValueError(f"{what} has shape {array.shape}, expected [n]")
    return array


def is_images(x: Any) -> bool:
    """Whether these are images: bytes of three or four axes."""
    return getattr(x, "dtype", None) == np.uint8 and getattr(x, "ndim", 0) in (3, 4)


def flat_images(x: NDArray[Any]) -> NDArray[Any]:
    """Images ``[n, h, w, c]`` as rows in the library's order, channel by channel."""
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


def stacked_images(rows: Doubles, shape: list[int]) -> Doubles:
    """Rows in the library's order as images ``[n, h, w, c]``."""
    height, width, channels = shape
    return np.moveaxis(rows.reshape(-1, channels, height, width), 1, 3)


def samples_of(
    x: Any,
    *,
    given: Any = None,
    weights: ArrayLike | None = None,
    categories: Sequence[str] = (),
    shape: list[int] | None = None,
    columns: Columns | None = None,
    missing: bool = False,
    what: str = "x",
) -> Samples:
    """Samples of rows, of which cells that are missing are NaN, of frames, or of images.

    ``shape`` is that of a model's samples and ``columns`` are those of its tables, where there is a model already.
    """
    context = None if given is None else as_table(given, "given", None, categories)
    context_names = column_names(given)
    weight = None if weights is None else as_vector(weights, "sample_weight")
    if is_images(x):
        images: NDArray[np.uint8] = np.asarray(x)
        if images.ndim == 3:
            images = images[..., None]
        return Samples.images(images, context, context_names, weight)
    if shape is None or len(shape) == 1:
        frame = as_frame(x, columns, categories, missing)
        if frame is not None:
            return Samples.rows(frame, None, context, context_names, weight, missing)
    array = as_numbers(x, what)
    if shape is not None and len(shape) == 3 and array.ndim in (3, 4):
        # images as numbers from 0 to 1, such as those that were drawn
        array = array[..., None] if array.ndim == 3 else array
        if list(array.shape[1:]) != shape:
            raise ValueError(f"{what} has images of shape {list(array.shape[1:])}, the model is for {shape}")
        array = flat_images(array)
    return Samples.rows(as_rows(array, what), column_names(x), context, context_names, weight, missing)
