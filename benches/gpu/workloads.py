"""What is measured, for PyTorch and for the table: `benches/common/mod.rs` and the presets say the same in Rust."""

# the bound on a layer's norm, by the law of the series: rows, and images
COEFFICIENT = {"geometric": 0.9, "poisson": 0.98}


def _image(image, alpha, blocks, filters):
    return dict(image=image, alpha=alpha, scales=[blocks] * 3, filters=filters, dense=4, law="poisson")


WORKLOADS = {
    "toy": dict(dimension=2, hidden=[64, 64, 64], blocks=8, law="geometric"),
    "tabular": dict(dimension=43, hidden=[128, 128], blocks=10, law="geometric"),
    "mnist-small": _image((1, 28, 28), 1e-6, 4, 64),
    "cifar10-small": _image((3, 32, 32), 0.05, 4, 64),
    "mnist": _image((1, 28, 28), 1e-6, 16, 512),
    "cifar10": _image((3, 32, 32), 0.05, 16, 512),
}

# (workload, batch): small batches as a user trains them, large ones as a GPU likes them
FULL = [
    ("toy", 500), ("toy", 16384), ("tabular", 500), ("tabular", 16384),
    ("mnist-small", 64), ("mnist-small", 512), ("cifar10-small", 64), ("cifar10-small", 512),
    ("mnist", 64), ("cifar10", 64),
]  # fmt: skip
# every kind of net, of a size for a processor that plays a GPU
SHORT = [("toy", 32), ("tabular", 32), ("mnist-small", 2), ("cifar10-small", 2)]

# rows, inner dimension, columns; and elements of a pass: those of the example `products` of resflow-wgpu
PRODUCTS = [
    (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (500, 43, 128), (500, 128, 128), (65536, 128, 128), (65536, 512, 512),
]  # fmt: skip
PASSES = [1 << 20, 1 << 26]
QUICK = 1 << 27
