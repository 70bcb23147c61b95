"""Grafts on attention: what mixes tokens in a layer is replaced, in some layers or in all."""
