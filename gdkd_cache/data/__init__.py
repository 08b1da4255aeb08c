"""Sources, recipes, views, and the loaders that render them."""
