"""The parts of a run: each is a program with a time limit, whose output is read into what the table needs."""
import json
import re
import statistics

from workloads import FULL, SHORT

PRECISIONS = ("f32", "f16x3", "f16")
PEER = ("torch-f32", "torch-tf32")
# what a part may take, in seconds, where nothing else is asked for
CHECK_LIMIT, FIGURE_LIMIT, PRODUCT_LIMIT = 600, 300, 300

# (row, program, precision, the tests of it): suites that are held to what single precision is held to
CHECKS = [
    ("conformance", "conformance", "f32", []),
    ("conformance", "cooperative", "f16x3", ["f16x3::"]),
    ("conformance", "cooperative", "f16", ["half_precision"]),
    ("launches, waits, lost devices", "launches", "f32", []),
    ("launches, waits, lost devices", "faults", "f32", []),
    ("agreement with the CPU", "backends", "f32", ["agreement::gpu::"]),
    ("agreement with the CPU", "backends", "f16x3", ["agreement::wgpu::"]),
    ("the authors' numbers", "backends", "f32", ["golden::wgpu::"]),
    ("the authors' numbers", "backends", "f16x3", ["golden::wgpu::"]),
]


def check_name(program, tests, precision):
    """The name of a check: by its program, or of one with several suites by that suite."""
    suite = tests[0].split("::")[0] if program == "backends" else program
    return f"checks/{suite}/{precision}"


class Part:
    """A name such as `figures/toy/500/f16x3`, a command, what the environment must say, and a limit in seconds."""

    def __init__(self, name, command, read, limit, **environment):
        self.name, self.command, self.read, self.limit, self.environment = name, command, read, limit, environment


def all_parts(folder, python, quick, seconds, adapter, peer):
    """Those that the adapter and PyTorch can do, in the order in which they run."""
    offered = PRECISIONS if adapter["cooperative_matrices"] else PRECISIONS[:1]
    precisions = peer_precisions(peer)
    program = lambda name: str(folder / "bin" / name)
    parts = []
    for _, suite, precision, tests in CHECKS:
        if precision in offered:
            said = {} if suite == "cooperative" else {"RESFLOW_PRODUCTS": precision}
            name = check_name(suite, tests, precision)
            parts.append(Part(name, [program(suite), "--show-output", *tests], tests_passed, CHECK_LIMIT, **said))
    short = ["--quick"] if quick else []
    torch = [python, str(folder / "peer.py"), *short]
    for workload, batch in SHORT if quick else FULL:
        name = f"figures/{workload}/{batch}"
        for precision in offered:
            command = [program("throughput"), "--backend", "wgpu", "--products", precision, "--only", workload]
            command += ["--batch", str(batch), "--figures", str(seconds)]
            parts.append(Part(f"{name}/{precision}", command, figures, FIGURE_LIMIT))
        for precision in precisions:
            command = [*torch, "--precision", precision.removeprefix("torch-"), "--workload", workload]
            command += ["--batch", str(batch), "--seconds", str(seconds)]
            parts.append(Part(f"{name}/{precision}", command, figures, FIGURE_LIMIT))
    parts.append(Part("products/resflow", [program("products"), *short], products, PRODUCT_LIMIT))
    for precision in precisions:
        command = [*torch, "--products", "--precision", precision.removeprefix("torch-")]
        parts.append(Part(f"products/{precision}", command, products, PRODUCT_LIMIT))
    return parts


def peer_precisions(peer):
    """TF32 is a matter of the GPU."""
    return () if peer is None else PEER if peer["device"] == "cuda" else PEER[:1]


def lines(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def tests_passed(output):
    """What a test program says of itself; a test that was skipped counts as one that failed."""
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", output, re.M)
    if len(results) != 1:
        raise ValueError("no result of tests")
    passed, failed, ignored = map(int, results[0])
    if passed + failed == 0:
        raise ValueError("no test ran")
    skipped = output.count("SKIPPED, NOT TESTED")
    names = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED", output, re.M)))
    return dict(passed=passed - skipped, of=passed + failed, ignored=ignored, failed=names, skipped=skipped)


def figures(output):
    """Rates as mean and standard deviation over repetitions, by figure."""
    found = {}
    for line in lines(output):
        rates = line["rates"]
        found[line["figure"]] = dict(line, mean=statistics.fmean(rates), deviation=statistics.stdev(rates))
    wanted = {"training", "log_prob", "sampling_loose"}
    if not wanted <= found.keys():
        raise ValueError(f"no line of {', '.join(sorted(wanted - found.keys()))}")
    return found


def products(output):
    """Teraflop/s and gigabyte/s by product, or pass, and precision."""
    found = {}
    for line in lines(output):
        if "product" in line:
            # the line's own rate has two decimals
            m, k, n = map(int, line["product"].split("x"))
            found[f"{line['product']} {line['precision']}"] = 2e-6 * m * k * n / line["microseconds"]
        elif "operation" in line:
            found[f"{line['operation']} {line['elements']}"] = line["gigabyte_per_s"]
    if not found:
        raise ValueError("no product")
    return found
