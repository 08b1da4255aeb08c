"""What builds a teacher or student from a name and a weights file."""
