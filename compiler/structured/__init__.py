"""Weights made of small factors: which structures there are, the nearest one to a dense weight, and their modules."""
