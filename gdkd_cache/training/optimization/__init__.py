"""Optimizers, schedules of their learning rate, and their names."""
