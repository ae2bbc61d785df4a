"""Flows in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is optional")

from resflow import Flow  # noqa: E402
from resflow.torch import FlowDistribution, log_prob  # noqa: E402


@pytest.fixture(scope="module")
def double(rows: np.ndarray) -> Flow:
    return Flow.fit(rows, steps=40, precision="f64")


def test_gradients_pass_gradcheck(double: Flow, conditional: Flow, rows: np.ndarray) -> None:
    x = torch.tensor(rows[:4], requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_prob(double, x), (x,), eps=1e-6, atol=1e-4, rtol=1e-3)
    x = torch.tensor([[0.1, 0.2], [0.5, -0.3], [0.0, 0.4]], dtype=torch.float64, requires_grad=True)
    given = torch.tensor([[0.5, 0.3], [-0.2, 0.7], [0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, given: log_prob(conditional, x, given), (x, given), eps=1e-6, atol=1e-4, rtol=1e-3
    )
    # one context for all of them
    assert torch.autograd.gradcheck(
        lambda x, given: log_prob(conditional, x, given), (x, given[0].detach().requires_grad_()), eps=1e-6, atol=1e-4, rtol=1e-3
    )


def test_values_are_the_flow_s(double: Flow, rows: np.ndarray) -> None:
    x = torch.tensor(rows[:6])
    assert np.array_equal(log_prob(double, x).numpy(), double.log_prob(rows[:6]))
    assert log_prob(double, x.reshape(2, 3, 3)).shape == (2, 3)
    single = log_prob(double, x.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), log_prob(double, x), atol=1e-3)
    with pytest.raises(ValueError, match=r"x has shape"):
        log_prob(double, x[:, :2])
    with pytest.raises(ValueError, match="given nothing"):
        log_prob(double, x, x)


def test_gradients_lead_uphill(double: Flow, rows: np.ndarray) -> None:
    # a few steps along the gradient make rows likelier
    x = torch.tensor(rows[:20], requires_grad=True)
    before = log_prob(double, x).detach()
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(20):
        optimiser.zero_grad()
        (-log_prob(double, x).sum()).backward()
        optimiser.step()
    assert (log_prob(double, x).detach() > before).double().mean() > 0.9


def test_distributions(double: Flow, conditional: Flow) -> None:
    distribution = FlowDistribution(double, dtype=torch.float64)
    assert distribution.event_shape == (3,) and distribution.batch_shape == ()
    torch.manual_seed(0)
    first = distribution.sample((5, 2))
    torch.manual_seed(0)
    assert torch.equal(distribution.sample((5, 2)), first) and not torch.equal(distribution.sample((5, 2)), first)
    assert first.shape == (5, 2, 3) and distribution.log_prob(first).shape == (5, 2)
    assert np.allclose(distribution.log_prob(first[0]).numpy(), double.log_prob(first[0].numpy()))
    assert distribution.sample().shape == (3,)
    wide = distribution.expand((4,))
    assert wide.sample((2,)).shape == (2, 4, 3) and wide.log_prob(first[0, 0]).shape == (4,)
    with pytest.raises(ValueError):
        distribution.log_prob(torch.zeros(2))

    given = torch.tensor([[0.8, 0.1], [-0.8, 0.1]], dtype=torch.float64)
    at = FlowDistribution(conditional, given)
    drawn = at.sample((300,))
    assert drawn.shape == (300, 2, 2) and at.log_prob(drawn).shape == (300, 2)
    # the truths are 0.8 and -0.8, of which a short fit has learnt a part; the error of a mean of 300 is 0.05
    assert drawn[:, 0, 0].mean() > 0.2 and drawn[:, 1, 0].mean() < -0.2
    independent = torch.distributions.Independent(at, 1)
    assert independent.log_prob(drawn).shape == (300,)
    with pytest.raises(ValueError, match="conditional"):
        FlowDistribution(conditional)
