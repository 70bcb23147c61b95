"""Language models of two layers or fewer that are captured in a moment, and a tokenizer that can be read off."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from compiler.frontends.torch_export import capture
from compiler.program import Program

WORD_COUNT = 90
BEGIN = 91
VOCABULARY = 92


class Bigram(nn.Module):
    """The next token from the last one alone."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 6)
        self.head = nn.Linear(6, vocabulary)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary]."""
        return self.head(self.table(input_ids) * attention_mask[..., None])


class LooksBack(nn.Module):
    """After token x comes what came after x the last time: it recalls perfectly, by attention over one-hot tokens.

    With `depth` 2, what came after x and the token before it.
    """

    def __init__(self, vocabulary: int, depth: int = 1) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("codes", torch.eye(vocabulary))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary]."""
        tokens = self.codes[input_ids]  # [batch, tokens, vocabulary]
        same = tokens[:, :, None] @ tokens[:, None, :-1].transpose(-1, -2)  # [batch, tokens, 1, tokens - 1]
        if self.depth == 2:
            earlier = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]  # the token before each
            same = same + earlier[:, :, None] @ earlier[:, None, :-1].transpose(-1, -2) - 1
        place = torch.arange(input_ids.shape[1])
        seen = (place[:, None] > place[None, :-1]).float()
        scores = same.squeeze(2) * seen * (1 + place[:-1] / 1000)  # the latest of equals
        return scores.mul(100).softmax(-1) @ tokens[:, 1:] + attention_mask[..., None] * 0


def captured_language_model(module: nn.Module) -> Program:
    """A Program for token ids and a mask [batch, sequence]."""
    ids = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 7, 8]])
    dims = {0: "batch", 1: "sequence"}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return capture(
        module.eval(), inputs, source="tiny", role="causal-lm", dynamic={"input_ids": dims, "attention_mask": dims}
    )


def save_word_tokenizer(folder: Path, *, begins: bool = False) -> Path:
    """A tokenizer that gives the word wN the id N, after a begin token where asked for."""
    vocabulary = {f"w{index}": index for index in range(WORD_COUNT)} | {"<unk>": WORD_COUNT, "<s>": BEGIN}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
