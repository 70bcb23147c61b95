"""Token mixers that stand in for softmax attention, and the window of exact attention that goes with them."""
