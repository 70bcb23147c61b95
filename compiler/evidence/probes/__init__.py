"""Recall probes: can a language model still find what stands earlier in its context? One file a probe.

Perplexity hardly notices when a model forgets: most next tokens follow from the last few. These probes ask for what can
only be known by looking back. They are small, some 1,500 tokens together, and left out for models of more than
500 million weights, where even so few would take long.
"""
