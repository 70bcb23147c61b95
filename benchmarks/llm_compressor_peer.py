"""llm-compressor's GPTQ on a checkpoint: weights of linear layers in 4 or 3 bits, saved as its users save them.

    python benchmarks/llm_compressor_peer.py CHECKPOINT TARGET [--bits 4] [--group 64] [--text FOLDER]

It calibrates on windows of 512 tokens of the documents of --text that are not held out, or on the sentences that ship
with this compiler, and leaves tables and the output head as they are, which is its own recipe for language models; they
are saved in bfloat16. Needs an interpreter with llmcompressor, whose packages pin other versions than ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from held_out_text import TextFolder, held_out_windows
from texts import calibration_texts

WINDOW, WINDOWS = 512, 128


def compress(checkpoint: Path, target: Path, bits: int, group: int, text: Path | None) -> None:
    """Write the compressed checkpoint to `target`."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    model, rows = _language_model(checkpoint, text) if text else _encoder(checkpoint)
    scheme = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "symmetric": True}
    recipe = GPTQModifier(
        config_groups={"linear": {"targets": ["Linear"], "weights": scheme}},
        ignore=["lm_head", "re:.*pooler.*"],
    )
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=WINDOW,
        num_calibration_samples=len(rows),
    )
    model.to(torch.bfloat16).save_pretrained(target, save_compressed=True)


def _language_model(checkpoint: Path, text: Path) -> tuple[Any, list[dict[str, Any]]]:
    from transformers import AutoModelForCausalLM

    files = TextFolder.read(text).calibration
    windows = held_out_windows(files, checkpoint / "tokenizer.json", WINDOW, WINDOW * WINDOWS)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True, dtype="float32")
    return model, [{"input_ids": one, "attention_mask": one * 0 + 1} for one in windows]


def _encoder(checkpoint: Path) -> tuple[Any, list[dict[str, Any]]]:
    from texts import encode
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint, local_files_only=True, dtype="float32")
    batches = encode(checkpoint, calibration_texts())
    return model, [{name: rows[0] for name, rows in batch.items()} for batch in batches]


def main() -> None:
    """Compress one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64, help="numbers that share a scale; must divide every row")
    parser.add_argument("--text", type=Path)
    arguments = parser.parse_args()
    compress(arguments.checkpoint, arguments.target, arguments.bits, arguments.group, arguments.text)


if __name__ == "__main__":
    main()
