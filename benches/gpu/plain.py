"""A residual flow in plain PyTorch, for where normflows does not import: the algorithm of Chen et al. 2019 (arXiv 1906.02735)
as its authors published it and normflows runs it.

* Nets are (LipSwish, layer) × n; a layer's weight is W / max(1, σ / coefficient), σ = ⟨u, W v⟩ by power iteration, and the
  gradient goes through σ. In evaluation the weight is computed once and kept, where normflows computes it at each call.
* Training draws one number of terms N a batch and block, and one normal probe v a sample. The gradient is that of
  ⟨Σₖ (−1)ᵏ cₖ (Jᵀ)ᵏ v, J v⟩ (the Neumann series), taken in the forward pass, so that memory does not grow with N.
* Evaluation is exact in two dimensions; else Σₖ (−1)ᵏ⁺¹ cₖ/k vᵀ Jᵏ v with twenty exact terms and one probe.
* The inverse is x ← y − g(x) until (Δx)² < 1e−5 (1 + |y|) for every number, which is |Δx| near 3e−3.
"""
import math
import random

import torch
import torch.nn.functional as F

EXACT_IN_TRAINING, EXACT_IN_EVALUATION = 2, 20
INITIAL_ITERATIONS = 50


class Law:
    """N, the random terms behind the exact ones, and the weights that keep the series without bias."""

    def __init__(self, name):
        self.name = name

    def draw(self):
        if self.name == "geometric":  # 1, 2, … with p = 1/2
            return 1 + int(math.log(1.0 - random.random()) / math.log(0.5))
        n, product = 0, random.random()
        while product > math.exp(-2.0):  # Poisson, rate 2
            n, product = n + 1, product * random.random()
        return n

    def at_least(self, k):
        """P(N ≥ k)."""
        if self.name == "geometric":
            return 0.5 ** max(k - 1, 0)
        return 1.0 - math.exp(-2.0) * sum(2.0**i / math.factorial(i) for i in range(k))

    def weights(self, exact):
        """c₁, …, c_(exact + N): 1 for exact terms, then 1 / P(N ≥ k − exact)."""
        return [1.0] * exact + [1.0 / self.at_least(k) for k in range(1, self.draw() + 1)]


class LipSwish(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        return x * torch.sigmoid(x * F.softplus(self.beta)) / 1.1


class Layer(torch.nn.Module):
    """A matrix, or a zero-padded convolution over images of one size (c, h, w)."""

    def __init__(self, inputs, outputs, coefficient, kernel=None, size=None):
        super().__init__()
        shape = (outputs, inputs) if kernel is None else (outputs, inputs, kernel, kernel)
        self.weight = torch.nn.Parameter(torch.empty(shape))
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1.0 / math.sqrt(self.weight[0].numel())
        self.bias = torch.nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.coefficient, self.kept = coefficient, None
        # a convolution of single pixels is a matrix
        self.image = size if kernel is not None and kernel > 1 else None
        self.padding = 0 if kernel is None else kernel // 2
        self.register_buffer("v", F.normalize(torch.randn((1, inputs, *size) if self.image else inputs), dim=None))
        self.register_buffer("u", torch.zeros(()))
        self.update(INITIAL_ITERATIONS)

    def times(self, v):
        if self.image:
            return F.conv2d(v, self.weight, padding=self.padding)
        return torch.mv(self.weight.flatten(1), v)

    @torch.no_grad()
    def update(self, iterations):
        for _ in range(iterations):
            self.u = F.normalize(self.times(self.v), dim=None)
            back = F.conv_transpose2d(self.u, self.weight, padding=self.padding) if self.image else None
            self.v = F.normalize(torch.mv(self.weight.flatten(1).t(), self.u) if back is None else back, dim=None)

    def normalised(self):
        sigma = (self.u * self.times(self.v)).sum()
        return self.weight / torch.clamp(sigma / self.coefficient, min=1.0)

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            weight = self.normalised()
        else:
            if self.kept is None:
                self.kept = self.normalised().detach()
            weight = self.kept
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class ValueAndLogDet(torch.autograd.Function):
    """g(x) and the log det's estimate, whose gradient is taken here and now; the mean over samples weighs all alike."""

    @staticmethod
    def forward(context, net, weights, x, *parameters):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            g = net(x)
            v = torch.randn_like(x)
            term = total = v
            for k, weight in enumerate(weights, 1):
                term = torch.autograd.grad(g, x, term, retain_graph=True)[0]
                total = total + (-1) ** k * weight * term
            product = torch.autograd.grad(g, x, total, create_graph=True)[0]
            log_det = (product * v).flatten(1).sum(1)
            gradients = torch.autograd.grad(log_det.sum(), (x, *parameters), retain_graph=True, allow_unused=True)
        context.g, context.x, context.parameters, context.gradients = g, x, parameters, gradients
        return g.detach(), log_det.detach()

    @staticmethod
    def backward(context, by_g, by_log_det):
        inputs = (context.x, *context.parameters)
        through = torch.autograd.grad(context.g, inputs, by_g, allow_unused=True)
        scale = by_log_det[0]
        both = [a if b is None else b * scale if a is None else a + b * scale for a, b in zip(through, context.gradients)]
        context.g = context.gradients = None
        return (None, None, *both)


class Block(torch.nn.Module):
    """y = x + g(x)."""

    def __init__(self, layers, law):
        super().__init__()
        parts = [part for layer in layers for part in (LipSwish(), layer)]
        self.net, self.law = torch.nn.Sequential(*parts), Law(law)

    def latent(self, x):
        if self.training:
            parameters = tuple(self.net.parameters())
            g, log_det = ValueAndLogDet.apply(self.net, self.law.weights(EXACT_IN_TRAINING), x, *parameters)
            return x + g, log_det
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            g = self.net(x)
            log_det = self.exact(g, x) if x[0].numel() == 2 else self.estimate(g, x)
        return (x + g).detach(), log_det.detach()

    @staticmethod
    def exact(g, x):
        a, b = torch.autograd.grad(g[:, 0].sum(), x, retain_graph=True)[0].unbind(1)
        c, d = torch.autograd.grad(g[:, 1].sum(), x)[0].unbind(1)
        return ((1 + a) * (1 + d) - b * c).abs().log()

    def estimate(self, g, x):
        v = term = torch.randn_like(x)
        log_det = 0.0
        for k, weight in enumerate(self.law.weights(EXACT_IN_EVALUATION), 1):
            term = torch.autograd.grad(g, x, term, retain_graph=True)[0]
            log_det = log_det - (-1) ** k * weight / k * (term * v).flatten(1).sum(1)
        return log_det

    def data(self, y):
        tolerance = 1e-5 * (1 + y.abs())
        x, before = y - self.net(y), y
        for _ in range(1000):
            if torch.all((x - before) ** 2 < tolerance):
                break
            x, before = y - self.net(x), x
        return x


class ActNorm(torch.nn.Module):
    """Scales and shifts channels; the first batch sets both."""

    def __init__(self, channels, pixels):
        super().__init__()
        shape = (1, channels) if pixels is None else (1, channels, 1, 1)
        self.log_scale, self.shift = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
        self.pixels, self.fresh = pixels or 1, True

    def latent(self, x):
        if self.fresh:
            over = [0] if x.dim() == 2 else [0, 2, 3]
            with torch.no_grad():
                self.log_scale.copy_(-torch.log(x.std(over, keepdim=True) + 1e-6))
                self.shift.copy_(-x.mean(over, keepdim=True))
            self.fresh = False
        return (x + self.shift) * self.log_scale.exp(), self.pixels * self.log_scale.sum().expand(len(x))

    def data(self, y):
        return y * (-self.log_scale).exp() - self.shift


def dense_block(width, hidden, coefficient, law):
    widths = [width, *hidden, width]
    return Block([Layer(a, b, coefficient) for a, b in zip(widths, widths[1:])], law)


def image_block(channels, size, hidden, coefficient, law):
    widths = [channels, *hidden, channels]
    layers = [Layer(a, b, coefficient, k, size) for a, b, k in zip(widths, widths[1:], (3, 1, 3))]
    return Block(layers, law)


def actnorm(channels, size=None):
    return ActNorm(channels, None if size is None else size[0] * size[1])


def update(flow, iterations):
    for module in flow.modules():
        if isinstance(module, Layer):
            module.update(iterations)
