"""Passes whose unit is a whole feed-forward block."""
