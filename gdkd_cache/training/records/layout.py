"""The names of the files in a training's folder; loads nothing."""

METRICS = "metrics.jsonl"
STATE = "state.safetensors"
CONFIG = "run.toml"
LOG = "log.txt"
