"""The numbers of a report: arrays in, arrays out; nothing here draws."""
