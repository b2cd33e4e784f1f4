"""Attention to channels and places at once."""
