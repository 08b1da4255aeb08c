"""Codecs: teacher logits to compact columns and back."""
