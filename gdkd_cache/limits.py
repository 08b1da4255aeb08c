"""Bounds and names that options and the format share; loads nothing."""

SHARD_ROWS = 131072
"""Rows a shard, where nobody says otherwise."""
MOST_VIEWS = 2**20
LARGEST_SIDE = 2048
"""Of a view, in pixels."""
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
