#!/usr/bin/env python3
"""What the peer's log p and inverse cost in accuracy: the standard deviation of one call's log p, row by row, and the
evaluations of g that its inverse makes. Run beside normflows_bench.py, whose workloads it uses.

    peer/bin/python evaluation.py [--only toy|tabular|conv]

Of conv, whose log p takes a second an image, eight images are called four times.
"""
import argparse, json
import numpy as np
import torch
import normflows as nf
from normflows_bench import WORK, build, to_data, to_latent

parser = argparse.ArgumentParser()
parser.add_argument("--only")
only = parser.parse_args().only
torch.set_num_threads(1)
for name in ("toy", "tabular", "conv"):
    if only and name != only:
        continue
    w = WORK[name]
    torch.manual_seed(0); np.random.seed(0)
    flows = build(w)
    x = torch.randn(w["batch"], *w["shape"])
    to_latent(flows, x)
    opt = torch.optim.Adam(flows.parameters(), lr=1e-3)
    for _ in range(20):
        opt.zero_grad()
        z, ld = to_latent(flows, x)
        (0.5 * z.flatten(1).pow(2).sum(1) - ld).mean().backward()
        opt.step()
        nf.utils.update_lipschitz(flows, 5)
    flows.eval()
    x, times = (x[:8], 4) if name == "conv" else (x, 16)
    calls = torch.stack([to_latent(flows, x)[1].detach() for _ in range(times)])
    counter = {"g": 0}
    for f in flows:
        if isinstance(f, nf.flows.Residual):
            f.iresblock.nnet.register_forward_hook(lambda *_: counter.__setitem__("g", counter["g"] + 1))
    z, _ = to_latent(flows, x)
    counter["g"] = 0
    with torch.no_grad():
        to_data(flows, z.detach())
    print(json.dumps(dict(workload=name, standard_deviation_of_one_call=float(calls.var(0).mean().sqrt()),
                          evaluations_per_block=counter["g"] / w["blocks"])))
