"""Attention along the frames of a clip."""
