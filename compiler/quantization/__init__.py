"""Turning weights into few bits: scales, rounding, packing, and the modules that stand in for layers."""
