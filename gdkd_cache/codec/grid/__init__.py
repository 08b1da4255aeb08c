"""`grid`: rows of several cells, whole: see README.md."""
