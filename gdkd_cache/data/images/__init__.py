"""Image files to pixels, and pixels that are kept: in memory, or in a file on local disk."""
