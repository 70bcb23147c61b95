"""Whether a float artifact writes, token for token, what transformers writes greedily.

    python benchmarks/greedy_parity.py ARTIFACT --checkpoint FOLDER [--tokens 256] [--threads 2]

Ten prompts of several kinds, each continued by --tokens tokens on both sides with no end. Where they part, the gap of
transformers' two best logits at that token says how near to a draw it was. The table goes to the terminal and to
benchmarks/results/greedy_parity.*.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minilm_int8 import processor
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PROMPTS = (
    "Once upon a time, in a small village by the sea,",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a lower temperature on a mountain because",
    "Dear customer,\n\nthank you for your letter of",
    "A list of the planets, from the sun outwards:\n1.",
    "Q: What is the difference between a list and a tuple in Python?\nA:",
    "In the beginning of the nineteenth century, the steam engine",
    "To bake bread you need flour, water, salt and",
    "<|im_start|>user\nExplain gravity to a child.<|im_end|>\n<|im_start|>assistant\n",
)


def main() -> None:
    """Write on both sides, compare, show, write the results."""
    arguments = _arguments()
    console = Console(stderr=True)
    rows = _compare(arguments, console)
    equal = sum(row["equal_tokens"] == arguments.tokens for row in rows)
    table = Table("prompt", "equal tokens", "gap of the two best logits where they part", title="Greedy parity")
    for row in rows:
        table.add_row(repr(row["prompt"])[:50], f"{row['equal_tokens']}", f"{row['gap']:.2g}" if row["gap"] else "")
    console.print(table)
    console.print(f"{equal} of {len(rows)} prompts are token for token equal over {arguments.tokens} tokens")
    record = {"processor": processor(), "checkpoint": arguments.checkpoint.name, "prompts": rows, "equal": equal}
    results = HERE / "results"
    (results / "greedy_parity.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = [f"| {repr(row['prompt'])[:50]} | {row['equal_tokens']} of {arguments.tokens} |" for row in rows]
    page = (
        f"# Greedy text of the float artifact and of transformers\n\n{record['checkpoint']}, {record['processor']}.\n\n"
    )
    page += "| prompt | equal tokens |\n| --- | --- |\n" + "\n".join(lines) + "\n"
    (results / "greedy_parity.md").write_text(page, encoding="utf-8")


def _compare(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compiler.runtime.generation.decoder import Decoder

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    decoder = Decoder.open(arguments.artifact, 1, arguments.threads)
    rows = []
    for prompt in PROMPTS:
        ids: list[int] = tokenizer(prompt)["input_ids"]
        with torch.inference_mode():
            written = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=arguments.tokens, pad_token_id=0
            )[0, len(ids) :].tolist()
        ours = _written(decoder, ids, arguments.tokens)
        equal = next((i for i, pair in enumerate(zip(ours, written, strict=True)) if pair[0] != pair[1]), len(ours))
        console.print(f"{prompt[:60]!r}: {equal} of {arguments.tokens} tokens equal", markup=False)
        rows.append(
            {"prompt": prompt, "equal_tokens": equal, "gap": _gap(model, ids + written[:equal], equal, written)}
        )
    return rows


def _written(decoder: Any, ids: list[int], count: int) -> list[int]:
    decoder.clear(0)
    logits, tokens = decoder.prefill(0, ids), []
    while len(tokens) < count:
        tokens.append(int(logits.argmax()))
        logits = decoder.extend(0, [tokens[-1]])[-1]
    return tokens


def _gap(model: Any, ids: list[int], equal: int, written: list[int]) -> float | None:
    """How far apart the two best logits are after `ids`; None where nothing parted."""
    import torch

    if equal == len(written):
        return None
    with torch.inference_mode():
        best = model(torch.tensor([ids])).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
