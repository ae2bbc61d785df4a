"""zuko's flows with a recipe that a careful user would write, within a time limit.

Columns are standardised by the training rows' mean and deviation. A tenth of the rows validates. Up to three sizes, smallest
first, are trained for 12 % of the time each until one is no better than the one before; the best validated is trained again
from new weights for what is left, in batches of a twentieth of the rows, 32 to 256: Adam at 1e-3, gradients
clipped at norm 5, the learning rate a cosine over the time left and halved, with a return to the best weights, whenever
validation has not improved for a while; five such halvings in vain end the training. The result is the best validated state.
"""
import copy, math, time

import numpy as np
import torch
import zuko

# transforms and hidden widths; the first three for few rows, the last three for many
SMALL = [(1, [32, 32]), (2, [64, 64]), (3, [64, 64])]
LARGE = [(3, [64, 64]), (3, [128, 128]), (5, [256, 256])]
FEW_ROWS = 1_000
SHARE_OF_A_SIZE = 0.12
PATIENCE = 10
HALVINGS = 5


def build(kind, columns, transforms, hidden):
    if kind == "maf":
        return zuko.flows.MAF(columns, transforms=transforms, hidden_features=hidden, randperm=columns > 2)
    # two passes of the inverse are what makes an autoregressive transformation a coupling
    coupling = {"passes": 2} if kind == "nsf-coupling" else {}
    transforms = 2 * transforms if coupling else transforms
    return zuko.flows.NSF(columns, transforms=transforms, hidden_features=hidden, randperm=columns > 2, **coupling)


class Training:
    """One flow on its way; `best` is the least validated mean of −log p, in standard units."""

    def __init__(self, kind, size, train, validation, batch, generator):
        self.flow = build(kind, train.shape[1], *size)
        self.train, self.validation, self.batch, self.generator = train, validation, batch, generator
        self.optimiser = torch.optim.Adam(self.flow.parameters(), lr=1e-3)
        self.best, self.best_state, self.steps = math.inf, None, 0

    def validate(self):
        with torch.no_grad():
            terms = [-self.flow().log_prob(x).double().sum() for x in self.validation.split(2_000)]
        value = float(sum(terms)) / len(self.validation)
        return value if math.isfinite(value) else math.inf

    def keep_if_better(self):
        value = self.validate()
        if value < self.best:
            self.best, self.best_state = value, copy.deepcopy(self.flow.state_dict())
            return True
        return False

    def run(self, until):
        start = time.perf_counter()
        an_epoch = max(1, len(self.train) // self.batch)
        between, factor, vain, halvings = min(max(10, an_epoch), 200), 1.0, 0, 0
        self.keep_if_better()
        looking, since_look = 0.0, time.perf_counter()
        order, position = self.shuffle(), 0
        while (now := time.perf_counter()) < until:
            progress = (now - start) / max(until - start, 1e-9)
            for group in self.optimiser.param_groups:
                group["lr"] = 1e-3 * factor * 0.5 * (1 + math.cos(math.pi * progress))
            if position + self.batch > len(order):
                order, position = self.shuffle(), 0
            x = self.train[order[position : position + self.batch]]
            position += self.batch
            self.optimiser.zero_grad()
            loss = -self.flow().log_prob(x).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 5.0)
            if torch.isfinite(loss) and torch.isfinite(norm):
                self.optimiser.step()
            self.steps += 1
            # a fifth of the time at most goes into validation
            if self.steps % between == 0 and time.perf_counter() - since_look > 4 * looking:
                began = time.perf_counter()
                better = self.keep_if_better()
                since_look = time.perf_counter()
                looking = since_look - began
                vain = 0 if better else vain + 1
                if vain >= PATIENCE:
                    halvings, vain, factor = halvings + 1, 0, factor / 2
                    if halvings > HALVINGS:
                        break
                    self.return_to_best()
        self.keep_if_better()
        self.return_to_best()
        return self

    def shuffle(self):
        return torch.randperm(len(self.train), generator=self.generator)

    def return_to_best(self):
        if self.best_state is not None:
            self.flow.load_state_dict(self.best_state)


def fit(kind, train, seconds, seed):
    """A function from rows to log p in the data's units, and what was found on the way."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    centre, scale = train.mean(0), train.std(0)
    standard = torch.tensor((train - centre) / scale, dtype=torch.float32)
    order = torch.randperm(len(standard), generator=generator)
    held = min(max(len(standard) // 10, 1), 10_000)
    validation, rest = standard[order[:held]], standard[order[held:]]
    batch = int(np.clip(len(rest) // 20, min(32, len(rest)), 256))
    sizes = SMALL if len(train) <= FEW_ROWS else LARGE
    tried = []
    for size in sizes:
        training = Training(kind, size, rest, validation, batch, generator)
        tried.append(training.run(time.perf_counter() + SHARE_OF_A_SIZE * seconds))
        if len(tried) > 1 and tried[-1].best >= tried[-2].best:
            break
    chosen = min(range(len(tried)), key=lambda i: tried[i].best)
    final = Training(kind, sizes[chosen], rest, validation, batch, generator).run(start + seconds)
    if tried[chosen].best < final.best:
        final = tried[chosen]

    def log_p(rows):
        x = torch.tensor((rows - centre) / scale, dtype=torch.float32)
        with torch.no_grad():
            values = torch.cat([final.flow().log_prob(part) for part in x.split(2_000)])
        return values.double().numpy() - np.log(scale).sum()

    notes = {
        "transforms": sizes[chosen][0],
        "hidden": sizes[chosen][1],
        "steps": final.steps,
        "validation_log_p": -final.best - float(np.log(scale).sum()),
        "validation_rows": held,
    }
    return log_p, notes


def warm_up():
    """A step of each flow, since PyTorch loads parts of itself at its first step, for seconds."""
    for kind in ("nsf", "maf", "nsf-coupling"):
        fit(kind, np.random.default_rng(0).standard_normal((40, 3)), 0.1, 0)
