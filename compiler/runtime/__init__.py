"""Reading and running artifacts. Needs numpy and onnxruntime, and tokenizers for text; never torch, never a pass."""
