"""The datasets that a spec can name: one module each, and the registry that names them."""
