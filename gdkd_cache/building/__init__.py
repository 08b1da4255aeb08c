"""What `build`, `plan`, `pack` and `repair` do: views to a teacher, its logits to committed shards."""
