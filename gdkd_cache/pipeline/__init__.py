"""What the commands do: plain functions of frozen, validated option classes."""
