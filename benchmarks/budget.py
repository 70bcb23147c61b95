"""A budget against uniform bits at the same bytes: all-MiniLM-L6-v2, and SmolLM2-135M where its folder is given.

    python benchmarks/budget.py --artifacts FOLDER [--smollm2 CHECKPOINT --text FOLDER] [--gguf FILE] [--heal MINUTES]
                                [--only NAME ...] [--no-compile]

Every variant is compiled by the command, in a process of its own, into --artifacts, unless it stands there. The
embeddings of all-MiniLM-L6-v2 are compared with torch in float32 on 64 texts of Python's own help, one at a time;
SmolLM2 reads windows of 512 tokens of every eighth document of --text, and is calibrated on the others. No compile sees
what is judged on. What is called healed is given --heal minutes, alone on its machine if that is to count. Rows of
llm-compressor and of llama.cpp, which starts from --gguf, need those packages in the interpreter that runs this, and
are left out where they are not. The table goes to the terminal and to benchmarks/results/budget.*; a run with --only
adds to it. Bytes and quality are no matter of the machine, so rows of several stand there; each says what it was judged
on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held_out_text import TextFolder, held_out_windows
from measurement import weight_counts
from minilm_int8 import packaged_checkpoint, processor
from quality_figures import SideFigures, add_window, artifact_logits, transformers_logits
from quantized_peers import LLAMA_CPP, LLM_COMPRESSOR, Peer, weight_bytes
from results import earlier_record
from rich.console import Console
from sentence_embedding import SentenceEmbedding
from texts import encode, held_out_texts

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WINDOW = 512
MINILM, SMOLLM2 = "all-MiniLM-L6-v2", "SmolLM2-135M"
NEAREST = "rounding=nearest"
Batch = Mapping[str, np.ndarray[Any, Any]]
Embedding = Callable[[Batch], torch.Tensor]
"""Of one text: [1, hidden]."""
ALLOWED = ",".join(
    (
        "quantize:bits=8:activations=none:embeddings=8",
        "quantize:bits=4:embeddings=4:scale_bits=8",
        "quantize:bits=4:group=128:embeddings=4:keep_grid=false:scale_bits=8",
        "quantize-weights:format=int3:block=64",
        "quantize:bits=2:group=64:embeddings=4:keep_grid=false:scale_bits=8",
    )
)
"""What budgets choose among: few settings, so that a search takes minutes."""


@dataclass(frozen=True)
class Variant:
    """Passes after those that change nothing, a budget, and whether it is healed."""

    model: str
    grafts: str
    budget: str | None = None
    healed: bool = False

    @property
    def passes(self) -> str:
        """As --passes takes them."""
        first = "canonicalize,fuse" if self.model == MINILM else "canonicalize,fuse,make-incremental"
        return f"{first},{self.grafts}"


def _variants(model: str, sizes: tuple[str, ...]) -> dict[str, Variant]:
    """Budgets, and uniform bits in tables and layers: rounded to the nearest, and compensated as in GPTQ."""
    found = {f"{model}, budget size={size}": Variant(model, ALLOWED, f"size={size}") for size in sizes}
    for name, grafts in {
        "8 bits": "quantize:bits=8:activations=none:embeddings=8",
        "4 bits": "quantize:bits=4:group=32:embeddings=4:keep_grid=false",
        "4 bits, blocks of 128": "quantize:bits=4:group=128:embeddings=4:keep_grid=false",
        "3 bits": "quantize-weights:format=int3:block=64",
    }.items():
        found[f"{model}, {name}, to the nearest"] = Variant(model, f"{grafts}:{NEAREST}")
        found[f"{model}, {name}, GPTQ"] = Variant(model, grafts)
    return found


VARIANTS = {**_variants(MINILM, ("0.20", "0.13")), **_variants(SMOLLM2, ("0.14", "0.105"))}
PEERS = {
    f"{model}, llm-compressor, GPTQ, {bits} bits, blocks of 64": Peer(model, LLM_COMPRESSOR, ("--bits", str(bits)))
    for model in (MINILM, SMOLLM2)
    for bits in (4, 3)
} | {
    f"{SMOLLM2}, llama.cpp, {kind.upper()}{' throughout' if pure else ''}": Peer(SMOLLM2, LLAMA_CPP, (kind, *pure))
    for kind, pure in (("q4_0", ("--pure",)), ("q3_K_S", ()))
}
"""Other libraries on the same model. llm-compressor leaves tables as they are; llama.cpp gives rows that are no
multiple of 256, most of SmolLM2's, more than three bits, and with Q2_K the same file.
"""
VARIANTS |= {f"{name}, healed": replace(one, healed=True) for name, one in VARIANTS.items() if one.budget}


def main() -> None:
    """Compile what is missing, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    wanted = {name: one for name, one in (VARIANTS | PEERS).items() if _is_wanted(name, one, arguments)}
    checkpoints = {MINILM: packaged_checkpoint(), SMOLLM2: arguments.smollm2}
    documents = TextFolder.read(arguments.text) if arguments.text else None
    file = RESULTS / "budget.json"
    record = earlier_record(file, {}) if arguments.only else {}
    variants = record.setdefault("variants", {})
    for name, one in wanted.items():
        if not arguments.no_compile:
            if isinstance(one, Peer):
                _write_peer(name, one, checkpoints[one.model], arguments, console)
            else:
                _compile(name, one, checkpoints[one.model], documents, arguments, console)
    folders = {name: _folder(arguments.artifacts, name) for name in wanted}
    folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
    found = _embeddings({n: f for n, f in folders.items() if wanted[n].model == MINILM}, checkpoints[MINILM])
    language = {n: f for n, f in folders.items() if wanted[n].model == SMOLLM2}
    if language and documents is not None:
        found |= _predictions(language, arguments.smollm2, documents, arguments.tokens, console)
    for name, figures in found.items():
        one, folder = wanted[name], folders[name]
        judged_on = "64 texts" if one.model == MINILM or documents is None else documents.said
        about = _of_peer(folder, checkpoints[one.model]) if isinstance(one, Peer) else _of_report(folder)
        variants[name] = {**about, **figures, "judged_on": judged_on, "processor": processor()}
    text = _page(record)
    console.print(text, markup=False)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "budget.md").write_text(text, encoding="utf-8")


def _folder(artifacts: Path, name: str) -> Path:
    return artifacts / "".join(letter if letter.isalnum() else "-" for letter in name)


def _is_wanted(name: str, one: Variant | Peer, arguments: argparse.Namespace) -> bool:
    given = one.model == MINILM or arguments.smollm2 is not None
    if isinstance(one, Peer):
        given = given and one.installed and (one.package != LLAMA_CPP or arguments.gguf is not None)
    return given and (arguments.only is None or name in arguments.only)


def _write_peer(name: str, one: Peer, checkpoint: Path, arguments: argparse.Namespace, console: Console) -> None:
    folder = _folder(arguments.artifacts, name)
    if not folder.is_dir():
        source = arguments.gguf if one.package == LLAMA_CPP else checkpoint
        said = one.write(source, folder, arguments.text if one.model == SMOLLM2 else None)
        console.print(f"{name}: {said or 'done'}", markup=False)


def _compile(
    name: str,
    one: Variant,
    checkpoint: Path,
    documents: TextFolder | None,
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    folder = _folder(arguments.artifacts, name)
    if folder.is_dir():
        return
    command = [sys.executable, "-m", "compiler.cli", str(checkpoint), "--passes", one.passes, "-o", str(folder)]
    command += ["--budget", one.budget] if one.budget else []
    command += ["--heal", f"{arguments.heal:g}"] if one.healed else []
    if one.model == SMOLLM2 and documents is not None:
        command += ["--data", str(documents.link_calibration(arguments.artifacts / "calibration-text"))]
    console.print(f"{name}: compiling with {one.passes}", markup=False)
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    outcome = "done" if done.returncode == 0 else "\n".join(done.stderr.strip().splitlines()[-2:])
    console.print(f"{name}: {outcome} after {time.perf_counter() - started:.0f} s", markup=False)


def _embeddings(folders: Mapping[str, Path], checkpoint: Path) -> dict[str, dict[str, float]]:
    """Cosines to torch in float32, by variant."""
    if not folders:
        return {}
    inputs = encode(checkpoint, held_out_texts())
    expected = list(map(_torch_embedding(checkpoint), inputs))
    found = {}
    for name, folder in folders.items():
        run = _torch_embedding(folder) if name in PEERS else _artifact_embedding(folder)
        pairs = zip(map(run, inputs), expected, strict=True)
        cosines = [float(torch.nn.functional.cosine_similarity(one, other).mean()) for one, other in pairs]
        found[name] = {"mean_cosine": sum(cosines) / len(cosines), "worst_cosine": min(cosines)}
    return found


def _torch_embedding(folder: Path) -> Embedding:
    model = SentenceEmbedding.from_folder(folder).float()

    def run(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            embedding: torch.Tensor = model(**{key: torch.from_numpy(one) for key, one in batch.items()})
        return embedding

    return run


def _artifact_embedding(folder: Path) -> Embedding:
    from compiler.runtime.session import Session

    session = Session.open(folder)
    wanted = {spec.name: spec.dtype for spec in session.manifest.inputs}
    output = session.manifest.outputs[0].name

    def run(batch: Batch) -> torch.Tensor:
        return torch.from_numpy(session.run({key: batch[key].astype(kind) for key, kind in wanted.items()})[output])

    return run


def _predictions(
    folders: Mapping[str, Path], checkpoint: Path, documents: TextFolder, tokens: int, console: Console
) -> dict[str, dict[str, float]]:
    """Perplexities and divergences beside transformers in float32, by variant."""
    windows = held_out_windows(documents.held_out, checkpoint / "tokenizer.json", WINDOW, tokens)
    sides = {"": transformers_logits(checkpoint, torch.get_num_threads())}
    for name, folder in folders.items():
        if name in PEERS:
            sides[name] = PEERS[name].logits(folder, WINDOW, torch.get_num_threads())
        else:
            sides[name] = artifact_logits(folder, torch.get_num_threads())
    figures = {name: SideFigures() for name in sides}
    for index, window in enumerate(windows, 1):
        add_window(figures, sides, window)
        console.print(f"window {index} of {len(windows)}", markup=False)
    return {name: side.summary(figures[""]) for name, side in figures.items() if name}


def _of_peer(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Bytes of the weights, and their share of those of the model in float32."""
    size = weight_bytes(folder)
    return {"payload_bytes": size, "share": size / (4 * sum(weight_counts(checkpoint).values()))}


def _of_report(folder: Path) -> dict[str, Any]:
    """Bytes of the payload, its share of the weights in float32, and what a budget expected."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    mixes = [one["mix"] for one in report["passes"] if one["mix"] is not None]
    healings = [one["healing"] for one in report["passes"] if one["healing"] is not None]
    figures = {
        "payload_bytes": report["after"]["payload_bytes"],
        "share": report["after"]["payload_bytes"] / report["before"]["weight_bytes"],
        "compile_seconds": report["seconds"],
    }
    if healings:
        figures["healing_seconds"] = sum(one["seconds"] for one in healings)
    for mix in mixes:
        figures |= {"expected": mix["expected"], "search_seconds": mix["seconds"]}
    return figures


def _page(record: dict[str, Any]) -> str:
    rows = []
    for name, one in record["variants"].items():
        if "mean_cosine" in one:
            judged = f"cosine {one['mean_cosine']:.4f}, worst {one['worst_cosine']:.4f}"
        else:
            judged = (
                f"perplexity x{one['perplexity_ratio']:.4f} ± {one['ratio_standard_error']:.4f}, "
                f"KL {one['kl_divergence']:.4f}, top-1 kept {one['top1_agreement']:.1%}"
            )
        expected = f"{one['expected']:.3g}" if one.get("expected") is not None else "-"
        size = f"{one['payload_bytes'] / 1e6:.1f}"
        rows.append([name, size, f"{one['share']:.4f}", judged, expected, one["judged_on"]])
    head = ["variant", "payload MB", "of float32", "beside the original", "expected by the search", "judged on"]
    about = (
        "all-MiniLM-L6-v2: 64 texts of Python's help. SmolLM2-135M: windows of 512 tokens of held-out documents; rows "
        "are to be compared within one set of documents. "
        "GPTQ here is `rounding=compensated`: GPTQ's order and updates, with scales fitted anew (decision 14)."
    )
    table = "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])
    return f"# What a budget buys\n\n{about}\n\n{table}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--gguf", type=Path, help="SmolLM2 in a GGUF file, where llama.cpp starts from")
    parser.add_argument("--tokens", type=int, default=10 * 1024)
    parser.add_argument("--heal", type=float, default=15, help="minutes for each variant that is healed")
    parser.add_argument(
        "--only", nargs="*", choices=list(VARIANTS | PEERS), metavar="NAME", help="variants, as in the table"
    )
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
