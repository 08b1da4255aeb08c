"""Images in tar shards, on this machine or elsewhere."""
