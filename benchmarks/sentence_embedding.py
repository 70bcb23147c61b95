"""The benchmark's model: mean pooling and L2 normalisation over a transformers encoder, as its model card says."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn


class SentenceEmbedding(nn.Module):
    """input_ids and attention_mask [batch, tokens] -> unit vectors [batch, hidden]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_folder(cls, folder: Path, attention: str = "sdpa") -> SentenceEmbedding:
        """Read a checkpoint folder, offline."""
        from transformers import AutoModel

        encoder = AutoModel.from_pretrained(folder, attn_implementation=attention, local_files_only=True)
        return cls(encoder).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [batch, tokens, 1]
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean)
