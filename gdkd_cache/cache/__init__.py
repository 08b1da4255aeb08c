"""The read side that users see: open a cache, look at its views, join it with its source, average several."""
