"""Text from an artifact of a causal language model: decoding with states, sampling, chat templates, many requests at
once. Needs numpy, onnxruntime and tokenizers, and jinja2 where there is a chat template; never torch.
"""
