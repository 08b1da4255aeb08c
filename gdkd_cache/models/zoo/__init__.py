"""Networks of our own, one module a family."""
