"""Routers: what tells, once for a context, whether a layer needs all of its attention there, and how it learns to."""
