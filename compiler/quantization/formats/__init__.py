"""Weight formats: each is one file with its grid, its packing into bytes and what the bytes stand for.

A new one is a subclass of WeightFormat that a plugin returns from `register_formats`; `quantize-weights:format=NAME`
takes it, with compensated rounding and healing.
"""

from compiler.quantization.formats.weight_format import WeightFormat

__all__ = ["WeightFormat"]
