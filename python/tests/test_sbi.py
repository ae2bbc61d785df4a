"""The estimator of sbi, and sbi's training of it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is optional")
pytest.importorskip("sbi", reason="sbi is optional")

from sbi.inference import NPE  # noqa: E402
from sbi.utils import BoxUniform  # noqa: E402

from resflow.sbi import density_estimator  # noqa: E402


def simulations(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """theta uniform in a square, x = theta + 0.3 noise, with one coordinate more that says nothing."""
    generator = torch.Generator().manual_seed(0)
    theta = 4 * torch.rand(n, 2, generator=generator) - 2
    x = torch.cat([theta + 0.3 * torch.randn(n, 2, generator=generator), torch.randn(n, 1, generator=generator)], dim=1)
    return theta, x


def test_gradients_are_those_of_differences() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        theta, x = (tensor.double() for tensor in simulations(60))
        for family in ("nsf", "residual"):
            estimator = density_estimator(family, model={"blocks": 2, "hidden": [8]}, precision="f64")(theta, x)
            flat = estimator.net.flat
            # away from the identity, where gradients of first layers vanish
            with torch.no_grad():
                flat.add_(0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1)))
            estimator.eval()
            loss = estimator.loss(theta[:8], x[:8]).sum()
            loss.backward()
            direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
            along = (flat.grad * direction).sum().item()
            h, values = 1e-5, []
            start = flat.detach().clone()
            for sign in (1, -1):
                with torch.no_grad():
                    flat.copy_(start + sign * h * direction)
                    values.append(estimator.loss(theta[:8], x[:8]).sum().item())
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(along, rel=1e-3), family
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_sbi_trains_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    # sbi keeps its logs where it is started
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theta, x = simulations(1500)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    inference = NPE(prior=prior, density_estimator=density_estimator("nsf", model={"blocks": 3, "hidden": [32]}))
    inference.append_simulations(theta, x)
    estimator = inference.train(max_num_epochs=25, training_batch_size=100, learning_rate=3e-3, show_train_summary=False)
    posterior = inference.build_posterior(estimator)
    at = torch.tensor([0.5, -0.7, 0.0])
    drawn = posterior.sample((1000,), x=at, show_progress_bars=False)
    # the posterior is normal about x with deviation 0.3; means of 1000 samples err by 0.01
    assert torch.allclose(drawn.mean(0), at[:2], atol=0.12), drawn.mean(0)
    assert torch.allclose(drawn.std(0), torch.tensor([0.3, 0.3]), atol=0.1), drawn.std(0)
    assert posterior.log_prob(drawn[:5], x=at).shape == (5,)
    assert torch.equal(estimator.loss(theta[:4], x[:4]), -estimator.log_prob(theta[None, :4], x[:4])[0])
    # what was trained is a flow of the library
    flow = estimator.flow
    given = np.array([[0.5, -0.7, 0.0]])
    exact = -0.5 * 2 * np.log(2 * np.pi * 0.09)
    assert flow.condition(given).log_prob(given[:, :2])[0] == pytest.approx(exact, abs=0.4)
    for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert torch.equal(twin.log_prob(theta[None, :4], x[:4]), estimator.log_prob(theta[None, :4], x[:4]))


@pytest.mark.filterwarnings("ignore")
def test_embedding_nets_are_trained_too() -> None:
    theta, x = simulations(200)
    net = torch.nn.Linear(3, 2)
    estimator = density_estimator("nsf", model={"blocks": 2, "hidden": [16]}, embedding_net=net)(theta, x)
    with torch.no_grad():
        estimator.net.flat.add_(0.05 * torch.randn(estimator.net.flat.shape))
    estimator.loss(theta, x).mean().backward()
    assert net.weight.grad is not None and net.weight.grad.abs().sum() > 0
    assert estimator.sample((7,), x[:3]).shape == (7, 3, 2)
