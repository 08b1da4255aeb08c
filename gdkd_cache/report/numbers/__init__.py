"""Numbers of a report: arrays in, arrays out."""
