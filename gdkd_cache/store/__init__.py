"""The store: manifest, ledger, Zarr arrays, and the protocol that keeps them whole."""
