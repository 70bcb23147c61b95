"""Passes that take weights, units or layers out."""
