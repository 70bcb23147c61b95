"""Convolutions in fewer numbers."""
