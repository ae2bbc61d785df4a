"""A density estimator of sbi, trained by sbi's own loop.

``NPE(density_estimator=resflow.sbi.density_estimator(family="nsf"))`` learns p(theta | x) with a conditional flow of this
library: its parameters are PyTorch's, log p and all gradients are computed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import _core
from ._flow import Flow

__all__ = ["ResidualFlowEstimator", "density_estimator"]


def _numbers(x: Tensor) -> Any:
    return x.detach().to("cpu", torch.float64).numpy()


class _TrainedLogProb(torch.autograd.Function):
    """log p(x | c) of rows with one context each, with gradients in the parameters, the rows and the contexts."""

    @staticmethod
    def forward(ctx: Any, held: _Held, parameters: Tensor, x: Tensor, given: Tensor, seed: int) -> Tensor:
        held.follow(parameters)
        rows, contexts = _numbers(x), _numbers(given)
        ctx.held, ctx.seed, ctx.rows, ctx.contexts = held, seed, rows, contexts
        samples = _core.Samples.rows(rows, None, contexts)
        if any(ctx.needs_input_grad[2:4]):
            values, of_x, of_given = held.trainable.input_gradients(samples, seed)
            assert of_given is not None
            ctx.save_for_backward(parameters, torch.from_numpy(of_x).to(x), torch.from_numpy(of_given).to(given))
        else:
            values = held.trainable.log_prob(samples, seed)
            ctx.save_for_backward(parameters)
        return torch.from_numpy(values).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None, None]:
        parameters, *inputs = ctx.saved_tensors
        of_parameters = None
        if ctx.needs_input_grad[1]:
            ctx.held.follow(parameters)
            samples = _core.Samples.rows(ctx.rows, None, ctx.contexts)
            flat = ctx.held.trainable.parameter_gradient(samples, _numbers(grad), ctx.seed)
            of_parameters = torch.from_numpy(flat).to(parameters)
        of_x, of_given = (grad[:, None] * gradient for gradient in inputs) if inputs else (None, None)
        return None, of_parameters, of_x, of_given, None


class _Held:
    """The flow behind an estimator, which follows PyTorch's parameters."""

    def __init__(self, data: bytes, device: str) -> None:
        self.device = device
        self.trainable = _core.Trainable.from_bytes(data, device, None, None)
        self._parameters: Any = None
        self._flow: Flow | None = None

    def follow(self, parameters: Tensor) -> None:
        flat = _numbers(parameters)
        if self._parameters is None or not np.array_equal(flat, self._parameters):
            self.trainable.set_parameters(flat)
            self._parameters = flat.copy()
            self._flow = None

    @property
    def flow(self) -> Flow:
        if self._flow is None:
            self._flow = Flow._of(self.trainable.model(self.device, None, None))
        return self._flow

    def __reduce__(self) -> tuple[Any, ...]:
        return _Held, (self.trainable.to_bytes(), self.device)

    def __deepcopy__(self, memo: Any) -> _Held:
        return _Held(self.trainable.to_bytes(), self.device)


class ResidualFlowEstimator(ConditionalDensityEstimator):  # type: ignore[misc]
    """p(input | condition) by a conditional flow, an estimator of sbi that is made by :func:`density_estimator`.

    Its one parameter of PyTorch, ``net.flat``, holds all numbers of the flow that are trained; those of an embedding net come on
    top. :attr:`flow` is the flow as it is, which can be saved.
    """

    def __init__(
        self,
        data: bytes,
        input_shape: torch.Size,
        condition_shape: torch.Size,
        embedding_net: nn.Module | None = None,
        device: str = "cpu",
    ) -> None:
        held = _Held(data, device)
        net = nn.Module()
        net.flat = nn.Parameter(torch.from_numpy(held.trainable.parameters()).to(torch.get_default_dtype()))
        super().__init__(net=net, input_shape=input_shape, condition_shape=condition_shape)
        self._held = held
        self._embedding_net = nn.Identity() if embedding_net is None else embedding_net
        self._calls = 0

    @property
    def embedding_net(self) -> nn.Module:
        """The net that conditions go through before the flow is given them."""
        return self._embedding_net

    @property
    def flow(self) -> Flow:
        """The flow with the present parameters, without the embedding net."""
        self._held.follow(self.net.flat)
        return self._held.flow

    def _embedded(self, condition: Tensor) -> Tensor:
        embedded: Tensor = self._embedding_net(condition)
        return embedded.reshape(len(condition), -1)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Computes log p of inputs ``[sample, batch, *event]`` given conditions ``[batch, *event]``: ``[sample, batch]``, nats."""
        input, condition, batch = self._broadcast_and_align(input, condition)
        samples = input.shape[0]
        rows = input.reshape(samples * batch, -1)
        given = self._embedded(condition.reshape(samples * batch, *self.condition_shape))
        # noise of its own for each step; without estimates and grids there is none
        seed = self._calls if self.training else 0
        self._calls += int(self.training)
        values: Tensor = _TrainedLogProb.apply(self._held, self.net.flat, rows, given, seed)
        return values.reshape(samples, batch)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Computes -log p of each input given its condition, ``[batch]``, nats."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    @torch.no_grad()
    def sample(self, sample_shape: Any, condition: Tensor, **kwargs: Any) -> Tensor:
        """Draws inputs given conditions, ``[*sample_shape, batch, *event]``; ``torch.manual_seed`` decides which."""
        shape, batch = torch.Size(sample_shape), len(condition)
        seed = int(torch.randint(2**62, ()).item())
        at = self.flow.condition(_numbers(self._embedded(condition)))
        count = shape.numel()
        by_context = at.sample(count, seed=seed).reshape(batch, count, -1)
        rows = np.ascontiguousarray(np.moveaxis(by_context, 1, 0))
        return torch.from_numpy(rows).to(condition).reshape(*shape, batch, *self.input_shape)


def density_estimator(
    family: str = "residual",
    *,
    model: Mapping[str, Any] | None = None,
    embedding_net: nn.Module | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "f32",
) -> Callable[[Tensor, Tensor], ResidualFlowEstimator]:
    """Makes what sbi calls ``density_estimator``: a function that builds an estimator for parameters and simulations.

    Parameters
    ----------
    family : str
        The family of the flow; a coupling one, such as ``"nsf"``, needs two parameters at least.
    model : mapping, optional
        Settings of the architecture by their names in a configuration file, such as ``{"blocks": 4}``.
    embedding_net : torch.nn.Module, optional
        A net that simulations go through before the flow is given them; it is trained together with the flow.
    seed : int
        The seed of the first weights.
    device : str
        ``"cpu"``, ``"gpu"``, ``"gpu:NAME"`` or ``"best"``: where the flow computes.
    precision : ``"f32"`` or ``"f64"``
        The arithmetic.

    Examples
    --------
    >>> from sbi.inference import NPE
    >>> from resflow.sbi import density_estimator
    >>> inference = NPE(density_estimator=density_estimator("nsf"))  # doctest: +SKIP
    """

    def build(theta: Tensor, x: Tensor) -> ResidualFlowEstimator:
        net = nn.Identity() if embedding_net is None else embedding_net
        with torch.no_grad():
            given = net(x).reshape(len(x), -1)
        # scales, and the first weights: the flow begins as the identity
        settings = {"start": "identity", **(dict(model) if model is not None else {})}
        rows = _core.Samples.rows(_numbers(theta.reshape(len(theta), -1)), None, _numbers(given))
        begun = _core.fit(
            rows,
            validation=None,
            validation_fraction=None,
            family=family,
            model=json.dumps(settings),
            # what is measured in the first step is not worth a column's map
            train=json.dumps({"columns": "standardise", "validations": "even", "learning_rate": 1e-12}),
            steps=1,
            seconds=None,
            seed=seed,
            device=device,
            precision=precision,
            threads=None,
            regardless=True,
            missing=False,
            observer=None,
            keep=False,
        )
        return ResidualFlowEstimator(begun.to_bytes(), theta.shape[1:], x.shape[1:], embedding_net, device)

    return build
