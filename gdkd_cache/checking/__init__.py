"""What `verify` does."""
