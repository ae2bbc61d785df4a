"""The progress of a fit on a terminal."""

from __future__ import annotations

import sys

from ._results import Progress


class Bar:
    """A line that says how far a fit is."""

    WIDTH = 30

    def __init__(self) -> None:
        self._shown = -1
        self._imputing = False
        self._validation = ""

    def show(self, progress: Progress) -> None:
        if progress.validation_nll is not None:
            self._validation = f", validation {progress.validation_nll:.4f}"
        percent = int(100 * progress.fraction)
        if progress.imputing != self._imputing:
            self._imputing, self._validation = progress.imputing, ""
        elif percent == self._shown:
            return
        self._shown = percent
        filled = self.WIDTH * percent // 100
        bar = "#" * filled + "." * (self.WIDTH - filled)
        what = "imputer, " if progress.imputing else ""
        line = f"\r{bar} {percent:3d} %  {what}step {progress.step}, nll {progress.train_nll:.4f}{self._validation}  "
        sys.stderr.write(line)
        sys.stderr.flush()

    def end(self) -> None:
        if self._shown >= 0:
            sys.stderr.write("\n")
