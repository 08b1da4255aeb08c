"""Recipes: lists of augmentation steps, with their parameters drawn from (seed, view, key) alone."""
