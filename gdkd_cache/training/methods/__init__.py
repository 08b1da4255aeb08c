"""Methods that bring more than a loss: heads, parameters, or something else that a teacher left."""
