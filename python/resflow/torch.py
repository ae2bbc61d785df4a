"""Flows in PyTorch: log p with gradients, and a distribution.

A flow that was fitted is a function here, whose weights stay as they are: gradients go to the samples and to what they are
given. Take ``precision="f64"`` where gradients are to be exact to more than single precision.

>>> import torch, resflow.torch
>>> x = torch.randn(200, 2)
>>> flow = resflow.Flow.fit(x.numpy(), steps=5)
>>> point = torch.zeros(1, 2, requires_grad=True)
>>> resflow.torch.log_prob(flow, point).sum().backward()
>>> point.grad.shape
torch.Size([1, 2])
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints

from ._flow import Flow

__all__ = ["FlowDistribution", "log_prob"]


def _numbers(x: Tensor) -> Any:
    return x.detach().to("cpu", torch.float64).numpy()


class _LogProb(torch.autograd.Function):
    """log p(x | c) of rows, one context for each if there are any; its gradients are computed with it."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, x: Tensor, given: Tensor | None, seed: int | None) -> Tensor:
        wanted = any(ctx.needs_input_grad[1:3])
        ctx.with_context = given is not None
        if not wanted:
            if given is None:
                values = flow.log_prob(_numbers(x), seed=seed)
            else:
                values = flow.condition(_numbers(given)).log_prob(_numbers(x), seed=seed)
            return torch.from_numpy(values).to(x)
        gradients: tuple[Any, ...]
        if given is None:
            values, *gradients_list = flow.log_prob_and_gradient(_numbers(x), seed=seed)
        else:
            values, *gradients_list = flow.condition(_numbers(given)).log_prob_and_gradient(_numbers(x), seed=seed)
        gradients = tuple(torch.from_numpy(gradient).to(x) for gradient in gradients_list)
        ctx.save_for_backward(*gradients)
        return torch.from_numpy(values).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        of_x, *of_given = ctx.saved_tensors
        grad = grad[:, None]
        return None, grad * of_x, grad * of_given[0] if ctx.with_context else None, None


def log_prob(flow: Flow, x: Tensor, given: Tensor | None = None, *, seed: int | None = None) -> Tensor:
    """Computes log p of each sample, with gradients in the sample and in what it is given.

    Parameters
    ----------
    flow : Flow
        A flow over rows. Its weights get no gradient.
    x : tensor ``[..., d]``
        The samples, on any device; the flow computes on its own.
    given : tensor ``[..., k]``, optional
        What each sample is given, of a conditional flow; it is broadcast against ``x``.
    seed : int, optional
        As in :meth:`Flow.log_prob`.

    Returns
    -------
    tensor ``[...]``
        log p in nats, of the type and on the device of ``x``. It can be differentiated once.

    Raises
    ------
    ValueError
        For shapes that are not the flow's, and a ``given`` that is missing or too much.
    """
    if len(flow.sample_shape) != 1:
        raise ValueError("log_prob with gradients is for flows over rows, this one is over images")
    if x.ndim == 0 or x.shape[-1] != flow.dimension:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [..., {flow.dimension}]")
    if (given is None) != (flow.context_columns is None):
        raise ValueError("the flow is conditional: give it `given`" if given is None else "the flow is given nothing")
    batch = x.shape[:-1]
    if given is not None:
        if given.ndim == 0 or given.shape[-1] != flow.context_columns:
            raise ValueError(f"given has shape {tuple(given.shape)}, expected [..., {flow.context_columns}]")
        batch = torch.broadcast_shapes(batch, given.shape[:-1])
        given = given.expand(*batch, given.shape[-1]).reshape(-1, given.shape[-1])
    rows = x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1])
    values: Tensor = _LogProb.apply(flow, rows, given, seed)  # type: ignore[no-untyped-call]
    return values.reshape(batch)


class FlowDistribution(Distribution):
    """A flow as a distribution of PyTorch: ``log_prob`` with gradients, and samples by PyTorch's random numbers.

    Parameters
    ----------
    flow : Flow
        A flow over rows.
    given : tensor ``[..., k]``, optional
        The contexts of a conditional flow: one distribution for each.
    dtype : torch.dtype, optional
        The type of samples, that of ``given`` or PyTorch's default unless it is named.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # type: ignore[misc]
    has_rsample = False

    def __init__(
        self,
        flow: Flow,
        given: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if len(flow.sample_shape) != 1:
            raise ValueError("a distribution is of a flow over rows, this one is over images")
        if (given is None) != (flow.context_columns is None):
            raise ValueError("the flow is conditional: give it `given`" if given is None else "the flow is given nothing")
        self.flow = flow
        self.given = given
        self._dtype = dtype or (torch.get_default_dtype() if given is None else given.dtype)
        batch = torch.Size() if given is None else given.shape[:-1]
        super().__init__(batch, torch.Size([flow.dimension]), validate_args=validate_args)  # type: ignore[no-untyped-call]

    @constraints.dependent_property(is_discrete=False, event_dim=1)  # type: ignore[untyped-decorator]
    def support(self) -> constraints.Constraint:
        """All rows of real numbers."""
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Returns the distribution with another batch shape: copies of a flow that is given nothing, or of what it is given."""
        batch = torch.Size(batch_shape)
        given = None if self.given is None else self.given.expand(*batch, self.given.shape[-1])
        found = FlowDistribution(self.flow, given, dtype=self._dtype, validate_args=False)
        found._batch_shape = batch
        found._validate_args = self._validate_args
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes log p of samples ``[..., d]``, nats, with gradients."""
        if self._validate_args:
            self._validate_sample(value)
        given = self.given
        if given is None and self.batch_shape:
            value = value.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        return log_prob(self.flow, value, given)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws samples, ``[*sample_shape, *batch_shape, d]``; ``torch.manual_seed`` decides which."""
        shape = torch.Size(sample_shape)
        seed = int(torch.randint(2**62, ()).item())
        count, d = shape.numel(), self.flow.dimension
        if self.given is None:
            drawn = self.flow.sample(count * self.batch_shape.numel(), seed=seed)
            rows = drawn.reshape(*shape, *self.batch_shape, d)
        else:
            at = self.flow.condition(_numbers(self.given.reshape(-1, self.given.shape[-1])))
            # those of each context come together
            by_context = at.sample(count, seed=seed).reshape(-1, count, d)
            rows = np.moveaxis(by_context, 1, 0).reshape(*shape, *self.batch_shape, d)
        device = None if self.given is None else self.given.device
        return torch.as_tensor(np.ascontiguousarray(rows), dtype=self._dtype, device=device)
