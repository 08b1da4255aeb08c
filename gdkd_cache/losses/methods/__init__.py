"""The losses, one file each: the equation as a pure function, and the class that names its settings."""
