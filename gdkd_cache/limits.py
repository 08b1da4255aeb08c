"""Bounds and names that options and the format share; loads nothing."""

SHARD_ROWS = 131072
"""Rows a shard, where nobody says otherwise and rows are not too many."""
MOST_SHARD_ROWS = 2**20
_MOST_SHARDS = 2048
MOST_VIEWS = 2**20
MOST_CLASSES = 2**17
NO_LABEL = -1
"""In the place of a class id: nobody has labelled that row."""
MOST_CELLS = 2**10
"""Of a row, in height and in width."""
MOST_IMAGE_PIXELS = 40_000_000
"""Of one image file: ImageNet's largest has 5980 x 6430. Decoding takes 7 to 12 bytes for each, so below half a GB."""
MOST_IMAGE_BYTES = 2**28
"""Of one image file: room for the most pixels without compression."""
MOST_UNPACKED = 64
"""How many times its size a compressed file of images or logits may unpack to; neither gets near it."""
LEAST_UNPACKED = 2**26
"""Bytes that any may unpack to."""
LARGEST_SIDE = 2048
"""Of a view, in pixels."""
LARGEST_BATCH = 2**20
LARGEST_SEED = 2**63 - 1
"""Seeds are whole numbers from minus this to this: what torch takes."""
LARGEST_FACTOR = 10**6
"""Of weights, rates and temperatures: far beyond it, float32 holds no product of them."""
LEAST_TEMPERATURE = 1e-3
MOST_EPOCHS = 10**6
MOST_WORKERS = 1024
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
"""Of a teacher."""
TRAIN_PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
"""Of a training's steps."""


def usual_shard_rows(num_rows: int) -> int:
    """Rows a shard of so many: from 268 million on they are more, or a manifest could not list all shards."""
    shard_rows = SHARD_ROWS
    while num_rows > shard_rows * _MOST_SHARDS and shard_rows < MOST_SHARD_ROWS:
        shard_rows *= 2
    return shard_rows
