"""Residual flows: densities of tables and images, by invertible networks with exact likelihoods.

``ResidualFlow`` is an estimator of scikit-learn; ``Flow`` is all that the library can do with NumPy's arrays. Both are the
Rust library ``resflow``, whose files, numbers and random numbers they share. ``resflow.torch`` has flows as functions with
gradients and as distributions; ``resflow.sbi`` and ``resflow.pyod`` are adapters. Each of these asks for its own package.

log p is in nats, in the units of the data. What is random is a function of a seed, on any number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import DivergedError, __version__, devices
from ._flow import ConditionedFlow, Decoded, Finding, Flow, Progress, Score, look

if TYPE_CHECKING:
    from ._estimator import ResidualFlow

__all__ = [
    "ConditionedFlow",
    "Decoded",
    "DivergedError",
    "Finding",
    "Flow",
    "Progress",
    "ResidualFlow",
    "Score",
    "__version__",
    "devices",
    "look",
]


def __getattr__(name: str) -> Any:
    # scikit-learn is loaded by those who want its estimator
    if name == "ResidualFlow":
        from ._estimator import ResidualFlow

        return ResidualFlow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
