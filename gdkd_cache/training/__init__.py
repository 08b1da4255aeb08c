"""What `train` and `eval` do."""
