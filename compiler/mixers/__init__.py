"""Token mixers that stand in for softmax attention, and the window of exact attention that goes with them."""

from compiler.mixers.mixer import Mixer, MixerOptions, MixerSizes

__all__ = ["Mixer", "MixerOptions", "MixerSizes"]
