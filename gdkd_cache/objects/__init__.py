"""Bytes by name in folders, object stores and on web servers: knows nothing of caches."""
