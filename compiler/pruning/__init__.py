"""Pruning: weights, units and layers that a model can do without, and the graphs that are left."""
