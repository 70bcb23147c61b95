"""Recall probes: can a language model still find what stands earlier in its context? One file a probe.

Perplexity hardly notices when a model forgets: most next tokens follow from the last few. These probes ask for what can
only be known by looking back, some 128 tokens: farther than the windows that grafts leave. They are small, 2,500 tokens
together, and left out for models of more than 500 million weights, where even so few would take long.
"""
