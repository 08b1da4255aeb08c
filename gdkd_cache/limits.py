"""Bounds and names that options and the format share; loads nothing."""

SHARD_ROWS = 131072
"""Rows a shard, where nobody says otherwise."""
MOST_VIEWS = 2**20
MOST_CLASSES = 2**17
LARGEST_SIDE = 2048
"""Of a view, in pixels."""
LARGEST_BATCH = 2**20
LARGEST_SEED = 2**63 - 1
"""Seeds are whole numbers from minus this to this: what torch takes."""
LARGEST_FACTOR = 10**6
"""Of weights, rates and temperatures: far beyond it, float32 holds no product of them."""
MOST_EPOCHS = 10**6
MOST_WORKERS = 1024
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
