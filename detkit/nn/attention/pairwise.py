"""Attention of every place, or channel, to every other."""
