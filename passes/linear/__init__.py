"""Passes that put another structure in the place of a linear layer's weight."""
