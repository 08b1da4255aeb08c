"""What studies of several students share."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of n - 1) in percent."""
    return f"{statistics.mean(values):.2%}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")
