"""What a training leaves on disk, and what is read of it again."""
