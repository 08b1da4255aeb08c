"""Where the figures of a training are shown besides its `metrics.jsonl`."""
