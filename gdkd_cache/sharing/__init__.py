"""What `push`, `pull`, `merge` and `convert` do: copies of a cache, in part, joined or in its other form."""
