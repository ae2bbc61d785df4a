"""Conditional flows at contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from . import _core
from ._arrays import Doubles, as_rows
from ._results import Decoded, Score

if TYPE_CHECKING:
    from ._flow import Flow


class ConditionedFlow:
    """A conditional flow p(x | c) at m contexts, made by :meth:`Flow.condition`.

    Of one context all samples are samples; of several, sample i is one of context i, or they are drawn.
    """

    __slots__ = ("_at", "_flow")

    def __init__(self, flow: Flow, at: _core.Conditioned) -> None:
        self._flow = flow
        self._at = at

    def __repr__(self) -> str:
        return f"<{self._flow!r} at {self._at.contexts()} contexts>"

    @property
    def contexts(self) -> int:
        """m, the number of contexts."""
        return self._at.contexts()

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
        """Computes log p(x | c) of each sample, ``[n]``, nats, and with ``return_standard_error`` the standard error of each.

        Parameters
        ----------
        x : array or frame ``[n, d]``, or images
            The samples: any number at one context, else as many as there are contexts.
        return_standard_error, seed
            As in :meth:`Flow.log_prob`.
        """
        found = self.score(x, seed=seed)
        return (found.log_prob, found.standard_error) if return_standard_error else found.log_prob

    def score(self, x: Any, *, sample_weight: ArrayLike | None = None, seed: int | None = None) -> Score:
        """Computes log p(x | c) of each sample with its errors, their mean and the mean's standard error."""
        return Score(**self._at.score(self._flow._samples(x, sample_weight), seed))

    def log_prob_and_gradient(self, x: Any, *, seed: int | None = None) -> tuple[Doubles, Doubles, Doubles]:
        """Computes log p(x | c) of each sample and its gradients.

        Returns
        -------
        log_prob : array ``[n]``
            log p(x | c), nats.
        gradient : array ``[n, d]``
            The gradient in the sample, nats per unit of the data.
        gradient_given : array ``[m, k]``
            The gradient of the sum of log p in the contexts, nats per unit of theirs.
        """
        return self._at.log_prob_and_gradient(self._flow._samples(x), seed)

    @overload
    def sample(self, n: int = ..., *, seed: int | None = ..., with_reports: Literal[False] = ...) -> Doubles: ...
    @overload
    def sample(self, n: int = ..., *, seed: int | None = ..., with_reports: Literal[True]) -> Decoded: ...
    def sample(self, n: int = 1, *, seed: int | None = None, with_reports: bool = False) -> Doubles | Decoded:
        """Draws ``n`` samples of every context, ``[m * n, d]``: sample j of context i is row ``i * n + j``.

        Parameters
        ----------
        n : int
            The samples of each context.
        seed, with_reports
            As in :meth:`Flow.sample`.
        """
        decoded = self._flow._decoded(self._at.sample(n, seed))
        return decoded if with_reports else decoded.samples

    def sample_and_log_prob(self, n: int = 1, *, seed: int | None = None) -> tuple[Doubles, Doubles]:
        """Draws ``n`` samples of every context, ``[m * n, d]``, and computes log p(x | c) of each, ``[m * n]``, nats."""
        samples, log_prob = self._at.sample_and_log_prob(n, seed)
        return self._flow._shaped(samples), log_prob

    def encode(self, x: Any, *, seed: int | None = None) -> Doubles:
        """Computes the latents of samples at their contexts, ``[n, d]``, standard normal if both are the model's.

        Parameters
        ----------
        x : array or frame ``[n, d]``, or images
            The samples: any number at one context, else as many as there are contexts.
        seed : int, optional
            As in :meth:`Flow.encode`.
        """
        return self._at.encode(self._flow._samples(x), seed)

    @overload
    def decode(self, z: ArrayLike, *, with_reports: Literal[False] = ...) -> Doubles: ...
    @overload
    def decode(self, z: ArrayLike, *, with_reports: Literal[True]) -> Decoded: ...
    def decode(self, z: ArrayLike, *, with_reports: bool = False) -> Doubles | Decoded:
        """Computes the samples of latents at their contexts: the inverse of :meth:`encode`.

        Parameters
        ----------
        z : array ``[n, d]``
            The latents: any number at one context, else as many as there are contexts.
        with_reports : bool
            Returns a :class:`Decoded`, which has the accuracy of each sample.
        """
        decoded = self._flow._decoded(self._at.decode(as_rows(z, "z")))
        return decoded if with_reports else decoded.samples
