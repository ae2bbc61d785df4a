"""What is computed of samples, and how far a fit is."""

from __future__ import annotations

from dataclasses import dataclass

from ._arrays import Doubles


@dataclass(frozen=True)
class Progress:
    """How far a fit is, after one of its steps."""

    step: int
    """The number of the step, from 1."""
    fraction: float
    """The part of the steps or the time that is spent, from 0 to 1; with missing cells of each of the two flows."""
    train_nll: float
    """The mean of -log p over the step's batch, nats."""
    gradient_norm: float
    """The 2-norm of the gradient before it is clipped."""
    learning_rate: float
    """The learning rate of the step."""
    validation_nll: float | None
    """The mean of -log p over the validation samples, nats, if they were looked at after this step."""
    validation_standard_error: float | None
    """The standard error of ``validation_nll``, nats."""
    improved: bool
    """Whether the validation made these weights the best ones so far."""
    imputing: bool
    """Whether the step is one of the flow that fills missing cells in, which is fitted first if there may be some."""


@dataclass(frozen=True)
class Score:
    """log p of some samples, in nats and in the units of the data, with what is known of its errors."""

    log_prob: Doubles
    """log p of each sample, ``[n]``, nats."""
    standard_error: Doubles
    """The standard error of each value, ``[n]``, nats; 0 where the log determinant is exact."""
    log_det: Doubles
    """log|det dz/dx| of each sample, ``[n]``, nats."""
    solve_error: Doubles
    """What inexact solves leave in each value to first order, ``[n]``, nats; 0 where there are none, inf where it is not known."""
    most_evaluations: int
    """Evaluations of g or f that the solves of the sample with the most of them took; 0 where there are none."""
    status: list[str]
    """``"converged"``; ``"out of support"`` and ``"not finite"`` where log p is -inf."""
    bias_bound: float
    """A bound on the bias of each value, nats: 0 unless a series is truncated."""
    mean: float
    """The mean of log p, nats."""
    mean_standard_error: float
    """The standard error of the mean as an estimate of E[log p], nats."""
    replicates: int
    """The estimates behind each value; 1 where all is exact."""
    estimator: str
    """The estimator of the log determinant, in words."""


@dataclass(frozen=True)
class Decoded:
    """Samples with the accuracy of each."""

    samples: Doubles
    """The samples, ``[n, d]`` or ``[n, h, w, c]``, in the units of the data; of images from 0 to 1."""
    residual: Doubles
    """How far each sample's latent is missed by a block, ``[n]``, relative."""
    error_bound: Doubles
    """A bound on the error of each sample, ``[n]``, in standardised units; ``inf`` behind couplings."""
    status: list[str]
    """How each inversion ended: ``"converged"``, or what kept it from it."""
    round_trip: float
    """The largest relative error of F(F^-1(z)) over the samples."""


@dataclass(frozen=True)
class Finding:
    """Something that a look at a table found."""

    severity: str
    """``"grave"`` if the density has no meaning, ``"warning"`` if the model will be worse for it, ``"note"``."""
    concern: str
    """What it is about, such as ``"constant"``, ``"dependent"``, ``"outliers"`` or ``"copies"``."""
    columns: list[int]
    """The columns, counted from 0; none of what is about rows."""
    sentence: str
    """What was found, with names and numbers."""
    remedy: str
    """What helps."""
