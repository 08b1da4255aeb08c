"""A process that reports epochs and then dies, or ends well; run by the tests of reporters.

python reporting.py KIND FOLDER LINES_BEFORE FIRST LAST dies|ends
"""

import os
import sys
from pathlib import Path
from typing import Any

from gdkd_cache.training.reporters.reports import Reports


def line(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 4.0 / epoch, "accuracy": epoch / 10, "agreement": None, "note": "text"}


if __name__ == "__main__":
    kind, folder, before, first, last, end = sys.argv[1:]
    lines = [line(epoch) for epoch in range(1, int(before) + 1)]
    reports = Reports([kind], Path(folder), name="student", options={"lr": 0.05, "out": Path("x")}, lines=lines)
    for epoch in range(int(first), int(last) + 1):
        reports.report(line(epoch))
    if end == "dies":
        os._exit(0)
    reports.close()
