"""Flows on NumPy's arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._arrays import Doubles, as_rows, as_table, samples_of, stacked_images
from ._bar import Bar
from ._conditioned import ConditionedFlow
from ._results import Decoded, Finding, Progress, Score

__all__ = ["ConditionedFlow", "Decoded", "Finding", "Flow", "Progress", "Score", "look"]


def look(x: Any, *, sample_weight: ArrayLike | None = None, categories: Sequence[str] = ()) -> list[Finding]:
    """Looks at a table before a flow is fitted to it: what would make its density meaningless, and what would only hurt.

    :meth:`Flow.fit` refuses a table with grave findings, all of them at once, and says nothing of the others.

    Parameters
    ----------
    x, sample_weight, categories
        As in :meth:`Flow.fit`.
    """
    samples = samples_of(x, weights=sample_weight, categories=categories)
    return [Finding(**found) for found in json.loads(_core.look(samples))]


class Flow:
    """A normalizing flow: densities, samples and latents of data in their own units.

    A flow is fitted with :meth:`fit` or read with :meth:`load`; it never changes. Its files are those of the program
    ``resflow`` and of the Rust library. It can be used by several threads, is pickled by its file's bytes, and computes without
    the interpreter's lock.

    Its random numbers (noise that spreads values on grids and pixels, probes of estimated log determinants, samples) are
    functions of the seed of its fit. Where a method takes a ``seed``, that is used instead, and gives the numbers that the
    program gives for the same ``--seed``.
    """

    __slots__ = ("_model",)
    _model: _core.Model

    def __init__(self) -> None:
        raise TypeError("a flow is made by Flow.fit, Flow.load or Flow.from_bytes")

    @classmethod
    def _of(cls, model: _core.Model) -> Flow:
        flow = object.__new__(cls)
        flow._model = model
        return flow

    @classmethod
    def fit(
        cls,
        x: Any,
        *,
        given: Any = None,
        sample_weight: ArrayLike | None = None,
        categories: Sequence[str] = (),
        validation: Any = None,
        validation_given: Any = None,
        validation_fraction: float | None = None,
        family: str | None = None,
        steps: int | None = None,
        time_limit: float | None = None,
        seed: int = 0,
        device: str = "cpu",
        precision: Literal["f32", "f64"] = "f32",
        threads: int | None = None,
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        regardless: bool = False,
        missing: bool = False,
        callback: Callable[[Progress], object] | None = None,
        progress: bool = False,
        on_interrupt: Literal["raise", "return"] = "raise",
    ) -> Flow:
        """Fits a flow to samples.

        A table is fitted as the program ``resflow fit`` does it, with the same result to the bit: some rows are set aside for
        validation, columns are brought to a common shape, training begins at the mixture of Gaussians that is best on the
        validation rows, and ends when validation has stopped improving, so that a small table takes seconds.

        Parameters
        ----------
        x : array or frame ``[n, d]``, or images of ``uint8`` ``[n, h, w]`` or ``[n, h, w, c]``
            The samples, finite numbers; ``float64`` and ``float32`` are read where they are, anything else is converted first.
            Columns of a frame that hold few words are categories: log p of a row is log p(categories) + log p(numbers | categories).
        given : array or frame ``[n, k]``, optional
            What each sample is given: the flow is p(x | given) then, and :meth:`condition` asks for it.
        sample_weight : array ``[n]``, optional
            Weights, 0 or more: 2 is the sample twice.
        categories : sequence of str, optional
            The names of columns that are categories, however many words they hold, or though they hold numbers.
        validation, validation_given : optional
            Samples to validate on, and what they are given, instead of some that are set aside.
        validation_fraction : float, optional
            The part of the samples that is set aside, above 0 and below 1.
        family : str, optional
            ``"residual"`` (the default), ``"iresnet"``, ``"dense"``, ``"implicit"``, ``"monotone"``, ``"realnvp"``, ``"glow"``
            ``"nsf"``, ``"flowpp"`` or ``"ffjord"``.
        steps : int, optional
            The most steps of training.
        time_limit : float, optional
            The seconds that training may take, instead of ``steps``; the result depends on the clock then.
        seed : int
            The seed of weights, batches and estimates.
        device : str
            ``"cpu"``, ``"gpu"``, ``"gpu:NAME"`` or ``"best"``; :func:`resflow.devices` lists GPUs.
        precision : ``"f32"`` or ``"f64"``
            The arithmetic; a GPU has single precision only.
        threads : int, optional
            The threads of the processor, all cores unless given. Results do not depend on it.
        model, train : mapping, optional
            Settings of the architecture and of the training by their names in a configuration file, such as
            ``{"blocks": 8}`` and ``{"batch": 512}``, in the place of the defaults.
        regardless : bool
            Fits a table whose density has no meaning all the same, such as one with a column that is the sum of others.
        missing : bool
            Whether cells may be missing: NaN of arrays, whatever a frame has for it. A second flow learns to fill them in first, which
            presumes that they are missing at random; :meth:`log_prob` and :meth:`score` take rows with missing cells then, and
            :meth:`impute` fills them in.
        callback : callable, optional
            Called with a :class:`Progress` after each step. ``False`` ends the fit with the best model so far; an exception ends it
            and is raised.
        progress : bool
            Shows a bar on ``stderr``.
        on_interrupt : ``"raise"`` or ``"return"``
            What Ctrl-C does: it is raised, or ends the fit with the best model so far, which there is from the first step on. It is
            noticed between steps, and before the first one between rounds of the search for a mixture.

        Returns
        -------
        Flow
            The weights that were best on the validation samples.

        Raises
        ------
        ValueError
            For data that are none, a table whose density has no meaning (with all that was found), settings out of range.
        DivergedError
            If training became non-finite.
        RuntimeError
            If the device failed.
        """
        if on_interrupt not in ("raise", "return"):
            raise ValueError(f"on_interrupt is {on_interrupt!r}, expected 'raise' or 'return'")
        samples = samples_of(x, given=given, weights=sample_weight, categories=categories, missing=missing)
        held_out = None
        if validation is not None:
            held_out = samples_of(
                validation, given=validation_given, categories=categories, missing=missing, what="validation"
            )
        elif validation_given is not None:
            raise ValueError("validation_given is for validation samples, and there are none")
        bar = Bar() if progress else None

        def observe(
            step: int,
            fraction: float,
            train_nll: float,
            gradient_norm: float,
            learning_rate: float,
            validated: tuple[float, float, bool] | None,
            imputing: bool,
        ) -> object:
            nll, error, improved = validated if validated is not None else (None, None, False)
            state = Progress(step, fraction, train_nll, gradient_norm, learning_rate, nll, error, improved, imputing)
            if bar is not None:
                bar.show(state)
            return callback(state) if callback is not None else True

        try:
            fitted = _core.fit(
                samples,
                validation=held_out,
                validation_fraction=validation_fraction,
                family=family,
                model=None if model is None else json.dumps(dict(model)),
                train=None if train is None else json.dumps(dict(train)),
                steps=steps,
                seconds=time_limit,
                seed=seed,
                device=device,
                precision=precision,
                threads=threads,
                regardless=regardless,
                missing=missing,
                observer=observe if bar is not None or callback is not None else None,
                keep=on_interrupt == "return",
            )
        finally:
            if bar is not None:
                bar.end()
        return cls._of(fitted)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        device: str = "cpu",
        precision: Literal["f32", "f64"] | None = None,
        threads: int | None = None,
    ) -> Flow:
        """Reads a model file, ``model.safetensors``, or the best model of a run's state, ``checkpoint.safetensors``.

        Parameters
        ----------
        path : path
            The file.
        device, threads : optional
            As in :meth:`fit`.
        precision : ``"f32"`` or ``"f64"``, optional
            The arithmetic, that of the fit unless given.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no model.
        """
        return cls._of(_core.Model.load(path, device, precision, threads))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model file: whoever reads ``path`` finds the old file or the new one, whatever happens meanwhile.

        Raises
        ------
        OSError
            If the file system refuses.
        """
        self._model.save(path)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        device: str = "cpu",
        precision: Literal["f32", "f64"] | None = None,
        threads: int | None = None,
    ) -> Flow:
        """Takes the bytes of a model file, as :meth:`load` takes the file.

        Raises
        ------
        ValueError
            If they are no model.
        """
        return cls._of(_core.Model.from_bytes(data, device, precision, threads))

    def to_bytes(self) -> bytes:
        """Returns the bytes that :meth:`save` writes: a function of the model alone."""
        return self._model.to_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        # onto the processor, which every machine has
        return _unpickle, (self.to_bytes(),)

    def __repr__(self) -> str:
        shape = self._model.sample_shape()
        over = f"{shape[0]} columns" if len(shape) == 1 else "images of " + " x ".join(map(str, shape))
        given = self.context_columns
        return f"<resflow.Flow over {over}{'' if given is None else f' given {given}'}, on {self._model.device()}>"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a sample: ``(d,)`` or ``(h, w, c)``."""
        return tuple(self._model.sample_shape())

    @property
    def dimension(self) -> int:
        """d, the numbers of a sample."""
        return int(np.prod(self._model.sample_shape()))

    @property
    def context_columns(self) -> int | None:
        """k, the columns that a conditional flow is given; ``None`` of one that is given nothing."""
        columns = self._model.context_columns()
        return None if columns is None else columns[1]

    @property
    def column_names(self) -> list[str] | None:
        """The names of the columns, those of categories in their places, if the samples of the fit had names."""
        columns = self._model.sample_columns()
        return None if columns is None else columns[0]

    @property
    def context_names(self) -> list[str] | None:
        """The names of the columns that a conditional flow is given, if they had names in the fit."""
        columns = self._model.context_columns()
        return None if columns is None else columns[0]

    @property
    def categories(self) -> dict[str, list[str]]:
        """The levels of each column of categories, of the samples or of what the flow is given."""
        found = self._model.categories()
        return {} if found is None else dict(found[0])

    @property
    def device(self) -> str:
        """The device, in words."""
        return self._model.device()

    def inspect(self) -> dict[str, Any]:
        """Says what the flow is made of and where it comes from.

        Returns
        -------
        dict
            ``family``, ``dimension``, ``parameters`` (numbers that are trained), ``config`` (the settings of the architecture),
            ``provenance`` (the data, the steps, the validation's -log p in nats, the mixtures that were tried) and ``certified``: the
            bounds on the Lipschitz constant of each block and on those of the flow and its inverse that are certain.
        """
        described: dict[str, Any] = json.loads(self._model.describe())
        return described

    def _samples(self, x: Any, weights: ArrayLike | None = None) -> _core.Samples:
        model = self._model
        # whether a model knows missing cells it says itself
        shape, columns = model.sample_shape(), model.sample_columns()
        return samples_of(x, weights=weights, shape=shape, columns=columns, missing=True)

    @overload
    def log_prob(
        self, x: Any, *, return_standard_error: Literal[False] = ..., seed: int | None = ...
    ) -> Doubles: ...
    @overload
    def log_prob(
        self, x: Any, *, return_standard_error: Literal[True], seed: int | None = ...
    ) -> tuple[Doubles, Doubles]: ...
    def log_prob(
        self, x: Any, *, return_standard_error: bool = False, seed: int | None = None
    ) -> Doubles | tuple[Doubles, Doubles]:
        """Computes log p of each sample.

        Parameters
        ----------
        x : array or frame ``[n, d]``, or images
            The samples, in the units of those that were fitted. Images are of ``uint8``, or numbers from 0 to 1.
        return_standard_error : bool
            Returns the standard errors as well. They are 0 where the log determinant is computed exactly, as it is of up to some
            dozens of columns, and no column is on a grid.
        seed : int, optional
            The seed of the estimates' noise, instead of that of the fit.

        Returns
        -------
        log_prob : array ``[n]``
            log p in nats, in the units of the data: where a column is multiplied by 10, log p falls by log 10. It is -inf for
            samples outside of a column's support or too far out for the arithmetic.
        standard_error : array ``[n]``
            The standard error of each, in nats, if it was asked for.

        Raises
        ------
        ValueError
            For another number of columns than d, and for numbers that are not finite.
        RuntimeError
            If the device failed.

        See Also
        --------
        score : all that is known of the values.
        percentile : where samples stand among those of the fit.
        """
        samples = self._samples(x)
        if not return_standard_error:
            return self._model.log_prob(samples, seed)
        found = self._model.score(samples, seed)
        return found["log_prob"], found["standard_error"]

    def score(self, x: Any, *, sample_weight: ArrayLike | None = None, seed: int | None = None) -> Score:
        """Computes log p of each sample with its errors, their mean and the mean's standard error.

        Parameters
        ----------
        x, seed
            As in :meth:`log_prob`.
        sample_weight : array ``[n]``, optional
            The weights of the samples in the mean.
        """
        return Score(**self._model.score(self._samples(x, sample_weight), seed))

    def percentile(self, x: Any, *, seed: int | None = None) -> Doubles:
        """Computes the share of the rows of the fit that are less likely than each sample.

        Returns
        -------
        array ``[n]``
            Percent from 0 to 100, to within 0.1: a sample at 1 is less likely than all but a hundredth of the rows.

        Raises
        ------
        ValueError
            If the model does not know the scores of its rows: one over images, or of a run's state.
        """
        return self._model.percentile(self._samples(x), seed)

    def impute(
        self, x: Any, n: int = 1, *, statistic: Literal["mean", "median"] | None = None, seed: int | None = None
    ) -> Doubles:
        """Fills missing cells in, of a flow that was fitted with ``missing=True``. What was seen stays as it is.

        Parameters
        ----------
        x : array or frame ``[m, d]``
            The rows; missing cells of an array are NaN.
        n : int
            The draws of each row.
        statistic : ``"mean"``, ``"median"`` or ``None``
            What is returned of each row's draws, all of them unless it is given.
        seed : int, optional
            The seed of the draws, instead of that of the fit.

        Returns
        -------
        array ``[m * n, d]``, or ``[m, d]`` with a statistic
            Draw j of row i is row ``i * n + j``.
        """
        return self._model.impute(self._samples(x), n, statistic, seed)

    def log_prob_and_gradient(self, x: Any, *, seed: int | None = None) -> tuple[Doubles, Doubles]:
        """Computes log p of each sample and its gradient in the sample.

        Returns
        -------
        log_prob : array ``[n]``
            log p, nats.
        gradient : array ``[n, d]``
            The gradient, nats per unit of the data. Where log determinants are estimated it is unbiased.
        """
        return self._model.log_prob_and_gradient(self._samples(x), seed)

    def encode(self, x: Any, *, seed: int | None = None) -> Doubles:
        """Computes the latents of samples, which are standard normal if the samples are the model's.

        Returns
        -------
        array ``[n, d]``
            z; that of images is flat, channel by channel.
        """
        return self._model.encode(self._samples(x), seed)

    def _decoded(self, found: _core._Inverted) -> Decoded:
        samples, residual, bound, status, round_trip = found
        return Decoded(self._shaped(samples), residual, bound, status, round_trip)

    def _shaped(self, rows: Doubles) -> Doubles:
        shape = self._model.sample_shape()
        return rows if len(shape) == 1 else stacked_images(rows, shape)

    @overload
    def decode(self, z: ArrayLike, *, with_reports: Literal[False] = ...) -> Doubles: ...
    @overload
    def decode(self, z: ArrayLike, *, with_reports: Literal[True]) -> Decoded: ...
    def decode(self, z: ArrayLike, *, with_reports: bool = False) -> Doubles | Decoded:
        """Computes the samples of latents: the inverse of :meth:`encode`.

        Parameters
        ----------
        z : array ``[n, d]``
            The latents.
        with_reports : bool
            Returns a :class:`Decoded`, which has the accuracy of each sample.

        Returns
        -------
        array ``[n, d]`` or ``[n, h, w, c]``
            The samples, in the units of the data; images are numbers from 0 to 1.
        """
        decoded = self._decoded(self._model.decode(as_rows(z, "z")))
        return decoded if with_reports else decoded.samples

    @overload
    def sample(self, n: int = ..., *, seed: int | None = ..., with_reports: Literal[False] = ...) -> Doubles: ...
    @overload
    def sample(self, n: int = ..., *, seed: int | None = ..., with_reports: Literal[True]) -> Decoded: ...
    def sample(self, n: int = 1, *, seed: int | None = None, with_reports: bool = False) -> Doubles | Decoded:
        """Draws samples of the model; of one with categories their numbers, :meth:`sample_table` has both.

        Parameters
        ----------
        n : int
            Their number.
        seed : int, optional
            The seed of the draw, instead of that of the fit. The same seed gives the same samples.
        with_reports : bool
            Returns a :class:`Decoded`, which has the accuracy of each sample.

        Returns
        -------
        array ``[n, d]`` or ``[n, h, w, c]``
            The samples, in the units of the data; images are numbers from 0 to 1.
        """
        decoded = self._decoded(self._model.sample(n, seed))
        return decoded if with_reports else decoded.samples

    def sample_table(self, n: int = 1, *, seed: int | None = None) -> dict[str, Doubles | list[str]]:
        """Draws rows as a table: the columns of the fit under their names, of which ``pandas.DataFrame`` makes a frame.

        Columns of categories are lists of words, all others arrays ``[n]`` in the units of the data. The numbers are those of
        :meth:`sample` for the same ``n`` and ``seed``.

        Raises
        ------
        ValueError
            If the flow is over images.
        """
        if len(self.sample_shape) != 1:
            raise ValueError("the flow is over images, which make no table")
        return dict(self._model.sample_table(n, seed))

    def sample_and_log_prob(self, n: int = 1, *, seed: int | None = None) -> tuple[Doubles, Doubles]:
        """Draws samples, ``[n, d]`` or ``[n, h, w, c]``, and computes log p of each, ``[n]``, nats."""
        samples, log_prob = self._model.sample_and_log_prob(n, seed)
        return self._shaped(samples), log_prob

    def condition(self, given: Any) -> ConditionedFlow:
        """Takes a conditional flow at contexts.

        Parameters
        ----------
        given : array or frame ``[m, k]``
            The contexts, in the units of those that were fitted.

        Raises
        ------
        ValueError
            If the flow is not conditional, and for contexts of another width.
        """
        columns = self._model.context_columns()
        return ConditionedFlow(self, self._model.condition(as_table(given, "given", columns)))


def _unpickle(data: bytes) -> Flow:
    return Flow.from_bytes(data)
