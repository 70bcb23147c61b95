"""Operators of the domain com.microsoft that optimizers and exporters write, one module a theme.

They have no versions: their meaning is what ONNX Runtime's CPU kernels compute.
"""

MICROSOFT = "com.microsoft"
