"""The table: a row for each check, figure and product, a column for each precision and for PyTorch's.

A cell is a value, or the reason why there is none. Reasons that lie in the machine are complete (`not offered`, `no torch`,
`no CUDA`); what failed, took too long or was not run is not.
"""
from parts import CHECKS, PEER, PRECISIONS, check_name, peer_precisions
from workloads import FULL, PASSES, PRODUCTS, QUICK, SHORT

NOTHING = "–"
COLUMNS = (*PRECISIONS, *PEER)
FIGURES = [
    # figure, row, unit, whether its ratio to PyTorch's says something
    ("training", "training", "samples/s", True),
    ("log_prob", "log p", "samples/s", True),
    # no ratio: of nets that are hardly trained the first trace is nearly all, which is exact here
    ("per_variance", "log p at equal error: rate / error²", "1/(s·nat²)", False),
    ("sampling", "sampling to 1e−6, by default", "samples/s", False),
    ("sampling_plain", "sampling to 1e−6, plain steps", "samples/s", False),
    ("sampling_loose", "sampling, loose", "samples/s", True),
]


def number(x, digits=3):
    """So many significant digits, with commas; powers of ten where there would be many zeros."""
    if x == 0 or 1e-3 <= abs(x) < 1e7:
        rounded = float(f"{x:.{digits}g}")
        return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


class Table:
    """`results` by part name, `selected` the parts that were asked for."""

    def __init__(self, results, selected, adapter, peer, quick):
        self.results, self.selected, self.adapter, self.peer, self.quick = results, selected, adapter, peer, quick
        self.precisions = peer_precisions(peer)
        self.missing, self.wrong, self.rows = [], [], []
        self.checks()
        self.figures()
        self.products()

    def reason(self, part, column):
        """Why a part has no value; `None` if it has one."""
        if column in PRECISIONS and column != "f32" and not self.adapter["cooperative_matrices"]:
            return "not offered"
        if column in PEER and self.peer is None:
            return "no torch"
        if column in PEER and column not in self.precisions:
            return "no CUDA"
        if part not in self.selected:
            return "not asked"
        result = self.results.get(part)
        if result is None:
            self.missing.append(part)
            return "**not run**"
        if result["status"] != "ok":
            self.missing.append(part)
            return f"**{result['status']}**"
        return None

    def row(self, name, unit, cells, ratio=NOTHING):
        if any(cell not in (NOTHING, "not asked", "not offered", "no torch", "no CUDA") for cell in cells):
            self.rows.append([name, unit, *cells, ratio])

    def checks(self):
        for name in dict.fromkeys(row for row, *_ in CHECKS):
            cells = []
            for column in COLUMNS:
                texts = []
                for suite, precision, tests in (check[1:] for check in CHECKS if check[0] == name and check[2] == column):
                    part = check_name(suite, tests, precision)
                    texts.append(self.reason(part, column) or self.tests(part))
                cells.append(", ".join(dict.fromkeys(texts)) or NOTHING)
            self.row(name, "tests passed", cells)

    def tests(self, part):
        found = self.results[part]["found"]
        if found["passed"] < found["of"]:
            self.wrong.append(f"{part}: {', '.join(found['failed']) or 'skipped tests'}")
            return f"**{found['passed']} of {found['of']}**"
        return f"{found['passed']} of {found['of']}"

    def figures(self):
        for workload, batch in SHORT if self.quick else FULL:
            for figure, name, unit, compared in FIGURES:
                cells, values = [], {}
                for column in COLUMNS:
                    part = f"figures/{workload}/{batch}/{column}"
                    if column in PEER and figure in ("sampling", "sampling_plain"):
                        cells.append(NOTHING)
                        continue
                    reason = self.reason(part, column)
                    text, values[column] = (reason, None) if reason else self.figure(part, figure)
                    cells.append(text)
                ratio = self.ratio(values) if compared else NOTHING
                self.row(f"{workload}, {batch}: {name}", unit, cells, ratio)

    def figure(self, part, figure):
        """The cell, and the rate."""
        found = self.results[part]["found"]
        line = found["log_prob" if figure == "per_variance" else figure]
        mean, error = line["mean"], line.get("standard_error")
        if figure == "per_variance":
            # without an error there is nothing to divide by: rates then compare as they are
            return ("exact", mean) if error == 0 else (number(mean / error**2), mean / error**2)
        text = f"{number(mean)} ± {number(line['deviation'], 2)}"
        if figure == "log_prob":
            text += ", exact" if error == 0 else f", error {number(error)}"
        if "round_trip_error" in line:
            text += f" (to {number(line['round_trip_error'], 2)}"
            text += f", {line['not_converged']} not)" if line.get("not_converged") else ")"
        return text, mean

    def ratio(self, values):
        """f32 over the faster of PyTorch's, on the same GPU."""
        peers = [values[column] for column in PEER if values.get(column)]
        if self.peer is None or self.peer["device"] != "cuda" or not peers or not values.get("f32"):
            return NOTHING
        return number(values["f32"] / max(peers))

    def products(self):
        def cell(column, key):
            part = f"products/{column}" if column in PEER else "products/resflow"
            reason = self.reason(part, column)
            value = None if reason else self.results[part]["found"].get(key)
            return reason or (number(value) if value is not None else "**not run**"), value

        def add(name, unit, key, columns):
            found = {column: cell(column, key(column)) for column in columns}
            values = {column: value for column, (_, value) in found.items()}
            self.row(name, unit, [found[c][0] if c in found else NOTHING for c in COLUMNS], self.ratio(values))

        for m, k, n in PRODUCTS:
            if not self.quick or m * k * n <= QUICK:
                key = lambda c: f"{m}x{k}x{n} {c.removeprefix('torch-')}"
                add(f"product {m:,} × {k:,} × {n:,}", "teraflop/s", key, COLUMNS)
        for elements in PASSES:
            if not self.quick or elements << 6 <= QUICK:
                for operation in ("tanh", "sum"):
                    key = lambda _: f"{operation} {elements}"
                    add(f"{operation} of {elements:,} numbers", "gigabyte/s", key, ("f32", "torch-f32"))

    def text(self):
        head = ["", "unit", "f32", "f16x3", "f16", "PyTorch f32", "PyTorch TF32", "f32 / PyTorch"]
        rule = ["---"] * len(head)
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *self.rows]) + "\n"
