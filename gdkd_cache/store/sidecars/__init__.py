"""Sidecars: a cache as WebDataset shards, each beside the image shard whose samples it speaks of.

`NAME.logits.tar` holds a record `shared` (cache rows, keys, labels, probes and checks of the shard's samples, in the
shard's order) and then one record a view, `00000` and so on, whose members are `.npy` columns of those samples.
`sidecars.json`, written last, holds the manifest of the Zarr cache and the checksum of every record; a fitted
codec's tables lie once in `sidecars.tables.npy`.
"""
