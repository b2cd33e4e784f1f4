"""Attention to channels, from statistics over the whole map."""
