"""transformers in float32 with its own growing cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TransformersDecoding:
    """A checkpoint folder in transformers, attention by torch's scaled_dot_product_attention."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self._torch = torch
        self._cache_type = transformers.DynamicCache
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._cache: Any = None

    def read(self, tokens: list[int]) -> int:
        self._cache = self._cache_type(config=self._model.config)
        return self._run(tokens)

    def take_back(self, length: int) -> None:
        surplus = self._cache.get_seq_length() - length
        if surplus:
            self._cache.crop(-surplus)

    def decode(self, token: int, count: int) -> None:
        for _ in range(count):
            token = self._run([token])

    def _run(self, tokens: list[int]) -> int:
        with self._torch.inference_mode():
            ids = self._torch.tensor([tokens])
            found = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            return int(found.logits[0, -1].argmax())
