#!/usr/bin/env python3
"""The figures of PyTorch: the same nets, batches, law of the series and power iterations as resflow's, with normflows' modules
where it imports and those of plain.py where it does not. Prints the lines that `throughput --figures` prints.

    peer.py --probe
    peer.py --workload mnist-small --batch 64 --seconds 2 --precision tf32
    peer.py --products [--quick]

What is timed: a training step (forward, series with the Neumann gradient, backward, Adam, five power iterations), log p of a
batch, and sampling (normal numbers, the inverse); each ends with its results on the host, and the device has done all that it
was asked. The batch lies on the device beforehand. PyTorch as it comes: no CUDA graphs, no compiler, no cuDNN benchmark.
`f32` turns TF32 off everywhere, `tf32` turns it on everywhere (by default it is on for convolutions alone).
"""
import argparse
import json
import math
import sys
import time

import torch

from workloads import COEFFICIENT, WORKLOADS, PRODUCTS, PASSES, QUICK

POWER_ITERATIONS, FIRST_STEPS, ERROR_CALLS = 5, 3, 8
# repetitions: of calls within a figure's time, of longer ones, of those five times as long
REPETITIONS, SLOW_REPETITIONS, FEWEST_REPETITIONS = 5, 3, 2


class Normflows:
    """normflows' modules; its blocks and norms map data to latents by `inverse`."""

    def __init__(self):
        import normflows

        self.nf = normflows

    class Block(torch.nn.Module):
        def __init__(self, residual):
            super().__init__()
            self.residual = residual

        def latent(self, x):
            return self.residual.inverse(x)

        def data(self, y):
            return self.residual.iresblock.inverse(y)

    class Norm(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def latent(self, x):
            return self.norm.inverse(x)

        def data(self, y):
            return self.norm(y)[0]

    def block(self, net, law):
        residual = self.nf.flows.Residual(net, reverse=True, reduce_memory=True, n_dist=law, n_exact_terms=2)
        return self.Block(residual)

    def dense_block(self, width, hidden, coefficient, law):
        net = self.nf.nets.LipschitzMLP([width, *hidden, width], init_zeros=False, lipschitz_const=coefficient,
                                        max_lipschitz_iter=POWER_ITERATIONS)
        return self.block(net, law)

    def image_block(self, channels, size, hidden, coefficient, law):
        net = self.nf.nets.LipschitzCNN([channels, *hidden, channels], [3, 1, 3], init_zeros=False,
                                        lipschitz_const=coefficient, max_lipschitz_iter=POWER_ITERATIONS)
        return self.block(net, law)

    def actnorm(self, channels, size=None):
        return self.Norm(self.nf.flows.ActNorm((channels,) if size is None else (channels, 1, 1)))

    def update(self, flow, iterations):
        self.nf.utils.update_lipschitz(flow, iterations)


def modules(name):
    """What makes blocks: normflows or plain torch, with its name."""
    if name != "torch":
        try:
            import importlib.metadata

            return Normflows(), f"normflows {importlib.metadata.version('normflows')}"
        except Exception as error:  # also one that imports a package of another version
            if name == "normflows":
                raise
            print(f"normflows does not import: {error}", file=sys.stderr)
    import plain

    return plain, "plain torch"


class Logit(torch.nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def latent(self, x):
        s = self.alpha + (1 - 2 * self.alpha) * x
        slope = math.log(1 - 2 * self.alpha) - s.log() - (1 - s).log()
        return s.log() - (1 - s).log(), slope.flatten(1).sum(1)

    def data(self, y):
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)


class Reshape(torch.nn.Module):
    def __init__(self, there, back):
        super().__init__()
        self.there, self.back = there, back

    def latent(self, x):
        return self.there(x), 0.0

    def data(self, y):
        return self.back(y)


class Flow(torch.nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def latent(self, x, first=0):
        """z, and the log det; in evaluation no part's graph is kept for the next."""
        log_det = torch.zeros(len(x), device=x.device)
        for part in self.parts[first:]:
            x, more = part.latent(x)
            log_det = log_det + more
            if not self.training:
                x, log_det = x.detach(), log_det.detach()
        return x, log_det

    def log_prob(self, x):
        z, log_det = self.latent(x)
        z = z.flatten(1)
        return log_det - 0.5 * (z * z).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)

    @torch.no_grad()
    def data(self, z, last=0):
        for part in reversed(self.parts[last:]):
            z = part.data(z)
        return z


def build(work, make):
    """The flow of a workload, data first, and the shape of its latents."""
    law, coefficient = work["law"], COEFFICIENT[work["law"]]
    if "dimension" in work:
        d, parts = work["dimension"], []
        for _ in range(work["blocks"]):
            parts += [make.actnorm(d), make.dense_block(d, work["hidden"], coefficient, law)]
        return Flow(parts), (d,)
    c, h, w = work["image"]
    parts = [Logit(work["alpha"]), make.actnorm(c, (h, w))]
    for scale, blocks in enumerate(work["scales"]):
        if scale > 0:
            pixels = torch.nn.functional.pixel_unshuffle, torch.nn.functional.pixel_shuffle
            parts.append(Reshape(lambda x: pixels[0](x, 2), lambda y: pixels[1](y, 2)))
            c, h, w = 4 * c, h // 2, w // 2
        for _ in range(blocks):
            parts.append(make.image_block(c, (h, w), [work["filters"]] * 2, coefficient, law))
            parts.append(make.actnorm(c, (h, w)))
    last, d = (c, h, w), c * h * w
    parts.append(Reshape(lambda x: x.flatten(1), lambda y: y.view(len(y), *last)))
    for _ in range(work["dense"]):
        parts += [make.dense_block(d, [128, 128], coefficient, law), make.actnorm(d)]
    return Flow(parts), (d,)


def rates(samples, seconds, device, work):
    """Samples per second in each repetition, as many calls as take its share of the time, or one; `work` was done once before."""

    def run(calls):
        start = now(device)
        for _ in range(calls):
            work()
        return (now(device) - start) / calls

    once = run(1)
    slow = SLOW_REPETITIONS if once <= 5 * seconds else FEWEST_REPETITIONS
    times, repetitions = ([once], slow) if once > seconds else ([], REPETITIONS)
    calls = int(min(max(seconds / repetitions / once, 1), 1e5))
    while len(times) < repetitions:
        times.append(run(calls))
    return [samples / time for time in times]


def now(device):
    """The time when everything asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(arguments, device):
    make, name = modules(arguments.modules)
    work, batch, seconds = WORKLOADS[arguments.workload], arguments.batch, arguments.seconds
    torch.manual_seed(0)
    flow, latents = build(work, make)
    flow = flow.to(device)
    if "dimension" in work:
        x = torch.randn(batch, work["dimension"], device=device)
    else:  # bytes of noise, dequantised once
        x = (torch.randint(0, 256, (batch, *work["image"]), device=device) + torch.rand(batch, *work["image"], device=device)) / 256

    def line(figure, rates, **more):
        said = dict(modules=name, torch=torch.__version__, device=device, precision=arguments.precision)
        said.update(figure=figure, workload=arguments.workload, batch=batch, rates=rates, **more)
        print(json.dumps(said), flush=True)

    flow.latent(x)  # the first batch sets the norms, and normflows' vectors
    adam = torch.optim.Adam(flow.parameters(), lr=1e-3)

    def step():
        adam.zero_grad()
        loss = -flow.log_prob(x).mean() / x[0].numel()
        loss.backward()
        adam.step()
        make.update(flow, POWER_ITERATIONS)
        return loss.item()

    for _ in range(FIRST_STEPS):
        step()
    training = rates(batch, seconds, device, step)
    line("training", training, loss=step(), parameters=sum(p.numel() for p in flow.parameters()))

    flow.eval()
    calls = []

    def log_prob():
        calls.append(flow.log_prob(x).cpu())

    log_prob()
    found = rates(batch, seconds, device, log_prob)
    while len(calls) < ERROR_CALLS and batch / min(found) < 1.0:
        log_prob()
    error = torch.stack(calls[-ERROR_CALLS:]).double().var(0).mean().sqrt().item()
    line("log_prob", found, standard_error=error)

    def sample():
        return flow.data(torch.randn(batch, *latents, device=device)).cpu()

    sample()
    found = rates(batch, seconds, device, sample)
    z = torch.randn(batch, *latents, device=device)
    # from the logit's output on, as resflow measures it: the data themselves are rounded where the logit is steepest
    first = 0 if "dimension" in work else 1
    with torch.no_grad():
        again = flow.latent(flow.data(z, first), first)[0]
    far = (again - z).flatten(1).abs().amax(1) / z.flatten(1).abs().amax(1).clamp(min=1.0)
    line("sampling_loose", found, round_trip_error=far.max().item())


def products(quick, device, precision):
    """Products and passes, as the example `products` of resflow-wgpu: the best of five runs of a tenth of a second."""

    def run(work, calls):
        start = now(device)
        for _ in range(calls):
            work()
        return now(device) - start

    def best(work):
        run(work, 3)
        calls = 4
        while run(work, calls) < 0.05 and calls < 1 << 16:
            calls *= 2
        return min(run(work, calls) for _ in range(5)) / calls

    for m, k, n in PRODUCTS:
        if quick and m * k * n > QUICK:
            continue
        a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        seconds = best(lambda: a @ b.t())
        print(json.dumps(dict(product=f"{m}x{k}x{n}", precision=precision, microseconds=round(seconds * 1e6, 1),
                              teraflop_per_s=2 * m * k * n / seconds / 1e12)), flush=True)
    for n in PASSES:
        if quick and n << 6 > QUICK:
            continue
        x = torch.randn(n, device=device)
        for operation, moved, work in (("tanh", 8, lambda: torch.tanh(x)), ("sum", 4, lambda: x.sum())):
            seconds = best(work)
            print(json.dumps(dict(operation=operation, elements=n, microseconds=round(seconds * 1e6, 2),
                                  gigabyte_per_s=moved * n / seconds / 1e9)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", action="store_true", help="says what there is, as one line")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workload", choices=list(WORKLOADS))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--precision", choices=("f32", "tf32"), default="f32")
    parser.add_argument("--modules", choices=("auto", "normflows", "torch"), default="auto")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.probe:
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        _, name = modules(arguments.modules)
        print(json.dumps(dict(torch=torch.__version__, cuda=torch.version.cuda, device=device, gpu=gpu, modules=name)))
        return
    if device == "cpu":
        # one thread, since a busy core beside it makes OpenMP spin; series go on into subnormal numbers, which cost a processor
        # a hundredfold and a GPU nothing
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.precision == "tf32"
    if arguments.products:
        products(arguments.quick, device, arguments.precision)
    else:
        measure(arguments, device)


if __name__ == "__main__":
    main()
