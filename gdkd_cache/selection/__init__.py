"""Which rows of a cache are worth training on: by what its teacher said of them, without images or a network."""
