"""What a model is called, from how it was named on the command line."""

from __future__ import annotations

import re
from pathlib import Path

PLAIN_WORDS = frozenset({"model", "models", "checkpoint", "snapshot", "weights", "onnx", "make", "factory"})
"""Names that say nothing; the folder or file around them says more."""


def model_name(model: str) -> str:
    """A file name for a model: the factory's name, or the path's last part that says something, without its ending."""
    path, colon, factory = model.rpartition(":")
    is_factory = bool(colon and path and factory.isidentifier())
    where = Path(path if is_factory else model).expanduser().resolve()
    parts = [factory] if is_factory else []
    parts += [re.sub(r"\.(pt2?|pth|gguf|onnx|safetensors|py)$", "", part) for part in (where.name, where.parent.name)]
    name = next((part for part in parts if part.lower() not in PLAIN_WORDS), parts[0])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
