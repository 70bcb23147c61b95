"""What routing saves and keeps: sparse layer calls on prose and on copies, recall, and time, against full attention.

    python benchmarks/routed_attention.py CHECKPOINT full=ARTIFACT routed=ARTIFACT --text FOLDER
                                          [--prompt 4096] [--tokens 32] [--texts 4] [--rounds 3] [--answers 200]
                                          [--reach 512] [--first 128] [--windows 120] [--results FOLDER]

CHECKPOINT is a transformers folder that both artifacts were compiled from with the documents that are not held out as
their --data (every eighth document of --text is), the first one being what the others are compared with:

    compile CHECKPOINT --passes make-incremental -o full
    compile CHECKPOINT --passes route-attention,make-incremental --data DOCUMENTS -o routed

A layer call is one layer's attention for one token; it is sparse where the layer is a window or its router chose one
and the token stands behind the --first ones, which see all. Prompts are prose of held-out documents, and random tokens
twice. Sides take turns, text by text, and at going first. What routers choose is also taken of --windows windows of
held-out documents, of which only as many tokens are read as routers ask for. Tables go to the terminal and to
routed_attention.json and .md among the results.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from held_out_text import TextFolder, held_out_windows
from hybrid_decode import ContextSide
from minilm_int8 import processor
from quality_figures import artifact_logits, drawn_recalls
from rich.console import Console

from compiler.evidence.probes.recall import RecallProbe, recall_score
from compiler.frontends import LoadOptions, load_model
from compiler.program import Program
from compiler.registry import Registry

HERE = Path(__file__).resolve().parent
PROSE, COPIES = "prose", "copies"
BEHIND = 8
"""Tokens read behind those that routers read, where only their choice is asked for."""
PROBES = ("copying", "needle", "associative-recall", "joint-recall")
COPYING = "copying"


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    registry = Registry()
    program = load_model(str(arguments.checkpoint), LoadOptions(), registry.frontends().values())
    probes = {name: registry.probes()[name]() for name in PROBES}
    artifacts = dict(arguments.artifacts)
    record = {
        "machine": {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()},
        "checkpoint": arguments.checkpoint.name,
        "prompt": arguments.prompt,
        "written": arguments.tokens,
        "first": arguments.first,
        "reach": arguments.reach,
        "recipes": {name: _manifest(folder).get("recipe") for name, folder in artifacts.items()},
        "choices": _chosen(artifacts, arguments, console),
        "recall": _recalled(program, probes, artifacts, arguments, console),
        "texts": _timed(artifacts, _texts(program, probes[COPYING], arguments), arguments, console),
    }
    text = _page(record)
    console.print(text, markup=False)
    arguments.results.mkdir(exist_ok=True)
    (arguments.results / "routed_attention.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "routed_attention.md").write_text(text, encoding="utf-8")


def _texts(program: Program, copying: Any, arguments: argparse.Namespace) -> dict[str, list[list[int]]]:
    """Prompts by kind."""
    documents = TextFolder.read(arguments.text).held_out
    wanted = arguments.texts * arguments.prompt
    prose = held_out_windows(documents, arguments.checkpoint / "tokenizer.json", arguments.prompt, wanted)
    copies = drawn_recalls(program, copying, arguments.texts * (arguments.prompt // 2 - 1), arguments.prompt // 2)
    return {
        PROSE: [one.tolist() for one in prose[: arguments.texts]],
        COPIES: [one.tokens.tolist() for one in copies[: arguments.texts]],
    }


def _timed(
    artifacts: Mapping[str, Path],
    texts: Mapping[str, Sequence[list[int]]],
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """By kind of text and side: tokens a second read and written in each round, and the share of sparse layer calls."""
    sides = [ContextSide(name, folder, arguments.threads) for name, folder in artifacts.items()]
    found: dict[str, Any] = {}
    for kind, prompts in texts.items():
        figures = found[kind] = {side.name: {"read": [], "written": [], "sparse": []} for side in sides}
        for number in range(arguments.rounds * len(prompts)):
            tokens, first = prompts[number % len(prompts)], number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                read = side.ask({"do": "read", "tokens": tokens})
                written = side.ask({"do": "write", "count": arguments.tokens})
                figures[side.name]["read"].append(len(tokens) / read["seconds"])
                figures[side.name]["written"].append(arguments.tokens / written["seconds"])
                sparse = _sparse_share(side.manifest, written["scores"], len(tokens), arguments.first)
                figures[side.name]["sparse"].append(sparse)
        console.print(f"{kind}: {len(prompts)} prompts of {len(prompts[0])} tokens measured", markup=False)
    for side in sides:
        side.close()
    return found


def _chosen(artifacts: Mapping[str, Path], arguments: argparse.Namespace, console: Console) -> dict[str, list[float]]:
    """By side and window of held-out prose: the share of layer calls that would be sparse in a prompt beginning so."""
    documents = TextFolder.read(arguments.text).held_out
    length = arguments.first + BEHIND
    windows = held_out_windows(documents, arguments.checkpoint / "tokenizer.json", length, arguments.windows * length)
    found: dict[str, list[float]] = {}
    for name, folder in artifacts.items():
        side = ContextSide(name, folder, arguments.threads)
        shares = found[name] = []
        for window in windows:
            side.ask({"do": "read", "tokens": window.tolist()})
            scores = side.ask({"do": "write", "count": 1})["scores"]
            shares.append(_sparse_share(side.manifest, scores, arguments.prompt, arguments.first))
        side.close()
        console.print(
            f"{name}: {statistics.mean(shares):.3f} of layer calls sparse, {len(shares)} windows", markup=False
        )
    return found


def _sparse_share(manifest: dict[str, Any], scores: Sequence[float], tokens: int, first: int) -> float:
    """Of all layer calls for a prompt of so many tokens. Routed layers are full ones with a router beside them."""
    shapes = {spec["name"]: spec["shape"] for spec in manifest["inputs"]}
    states = [state["past"] for state in manifest["generation"]["states"]]
    caches = sum(name.startswith("past_key_values.") for name in states) // 2
    windows = sum(name.startswith("past_state.") and len(shapes[name]) == 4 for name in states) // 2
    chosen = sum(score <= 0 for score in scores) * max(0, tokens - first) / tokens
    return (windows + chosen) / (caches + windows)


def _recalled(
    program: Program,
    probes: Mapping[str, Any],
    artifacts: Mapping[str, Path],
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, dict[str, float]]:
    """By probe and side: the share of answers told right."""
    runs = {name: artifact_logits(folder, arguments.threads) for name, folder in artifacts.items()}
    found: dict[str, dict[str, float]] = {}
    for probe_name, probe in probes.items():
        assert isinstance(probe, RecallProbe)
        if not probe.applies(program):
            continue
        drawn = drawn_recalls(program, probe, arguments.answers, arguments.reach)
        found[probe_name] = {
            name: recall_score(drawn, (run(one.tokens.numpy().astype(np.int64)) for one in drawn)).accuracy
            for name, run in runs.items()
        }
        shares = ", ".join(f"{name} {share:.3f}" for name, share in found[probe_name].items())
        console.print(f"{probe_name}, {sum(len(one.answers) for one in drawn)} answers: {shares}", markup=False)
    return found


def _page(record: dict[str, Any]) -> str:
    machine = record["machine"]
    names = list(record["recipes"])
    lines = [
        "# Routed attention",
        "",
        f"{record['checkpoint']}: prompts of {record['prompt']} tokens and {record['written']} written behind them. "
        f"{machine['processor']}, {machine['threads']} threads. Tokens a second: median (quartiles) [median of the "
        "ratios to the first side, round by round].",
        "",
        *_rows(["text", "side", "sparse layer calls", "read", "written"]),
    ]
    for kind, sides in record["texts"].items():
        for name, figures in sides.items():
            speeds = [_speed(figures[key], sides[names[0]][key]) for key in ("read", "written")]
            lines += _rows([kind, name, f"{statistics.mean(figures['sparse']) * 100:.1f} %", *speeds], heading=False)
    count = len(record["choices"][names[0]])
    lines += ["", f"Sparse layer calls in prompts that begin like {count} windows of held-out documents:", ""]
    lines += _rows(["side", "mean", "quartiles"])
    for name, shares in record["choices"].items():
        lower, _, upper = statistics.quantiles(shares, n=4, method="inclusive")
        cells = [name, f"{statistics.mean(shares) * 100:.1f} %", f"{lower * 100:.1f} to {upper * 100:.1f} %"]
        lines += _rows(cells, heading=False)
    lines += ["", f"Recall, {record['reach']} tokens back (of the first side's):", "", *_rows(["probe", *names])]
    for probe, shares in record["recall"].items():
        cells = [f"{share:.3f} ({share / max(shares[names[0]], 1e-9):.3f})" for share in shares.values()]
        lines += _rows([probe, *cells], heading=False)
    return "\n".join(lines) + "\n"


def _speed(rates: Sequence[float], first: Sequence[float]) -> str:
    lower, median, upper = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [rates[0]] * 3
    ratio = statistics.median(one / other for one, other in zip(rates, first, strict=True))
    return f"{median:.1f} ({lower:.1f} to {upper:.1f}) [{ratio:.2f}x]"


def _rows(cells: Sequence[str], *, heading: bool = True) -> list[str]:
    row = f"| {' | '.join(cells)} |"
    return [row, f"|{'---|' * len(cells)}"] if heading else [row]


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not (Path(path) / "manifest.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ARTIFACT")
    return name, Path(path)


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("artifacts", type=_named, nargs="+", metavar="NAME=ARTIFACT")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens written behind it")
    parser.add_argument("--texts", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--reach", type=int, default=512, help="how many tokens back probes ask")
    parser.add_argument("--first", type=int, default=128, help="tokens that routers read")
    parser.add_argument("--windows", type=int, default=120, help="of held-out prose, whose routers' choice is taken")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
