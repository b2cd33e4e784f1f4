"""Attention to places."""
