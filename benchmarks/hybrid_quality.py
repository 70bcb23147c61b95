"""What hybrids keep of a language model: its predictions of held-out text, and what it recalls.

    python benchmarks/hybrid_quality.py CHECKPOINT NAME=ARTIFACT [NAME=ARTIFACT ...] --text FOLDER
                                        [--tokens 20480] [--answers 200] [--results FOLDER] [--add]

CHECKPOINT is a transformers folder, which all artifacts were compiled from with the documents that are not held out as
their --data (every eighth document of --text is, and no compile sees it), as by

    compile CHECKPOINT --passes linear-attention:kind=gated-delta:window=64:layers=auto-0.75 --heal 15 --data DOCUMENTS

All sides read the same windows of 512 held-out tokens, and answer the same questions of the recall probes, drawn from
seeds that no compile uses. transformers in float32 is the original. Tables, one for each text, go to the terminal and
to hybrid_quality.json and .md among the results; --add keeps those of earlier runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from held_out_text import TextFolder, held_out_windows
from minilm_int8 import processor
from quality_figures import Logits, SideFigures, add_window, artifact_logits, drawn_recalls, transformers_logits
from results import earlier_record
from rich.console import Console

from compiler.evidence.probes.recall import RecallProbe, recall_score

HERE = Path(__file__).resolve().parent
WINDOW = 512
PROBES = ("copying", "needle", "associative-recall", "joint-recall")
ORIGINAL = "transformers float32"


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    documents = TextFolder.read(arguments.text)
    sides: dict[str, Logits] = {ORIGINAL: transformers_logits(arguments.checkpoint, arguments.threads)}
    sides |= {name: artifact_logits(folder, arguments.threads) for name, folder in arguments.artifacts.items()}
    recalled = _recalled(arguments, sides, console)
    figures = {name: SideFigures() for name in sides}
    windows = held_out_windows(documents.held_out, arguments.checkpoint / "tokenizer.json", WINDOW, arguments.tokens)
    for index, tokens in enumerate(windows, 1):
        add_window(figures, sides, tokens)
        found = ", ".join(
            f"{name} {one.summary(figures[ORIGINAL])['kl_divergence']:.4f}" for name, one in figures.items()
        )
        console.print(f"window {index} of {len(windows)}: KL {found}", markup=False)
    about = {
        "checkpoint": arguments.checkpoint.name,
        "tokens": sum(map(len, windows)),
        "judged_on": documents.said,
        "window": WINDOW,
    }
    file = arguments.results / "hybrid_quality.json"
    runs = earlier_record(file, {}).get("runs", []) if arguments.add else []
    run = next((one for one in runs if all(one[key] == value for key, value in about.items())), None)
    if run is None:
        runs.append(run := {**about, "sides": {}})
    run["sides"] |= {
        name: {
            **one.summary(figures[ORIGINAL]),
            "recall": recalled[name],
            **_made(arguments.artifacts.get(name)),
            "processor": processor(),
        }
        for name, one in figures.items()
    }
    record = {"runs": runs}
    text = _page(record)
    console.print(text, markup=False)
    arguments.results.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.results / "hybrid_quality.md").write_text(text, encoding="utf-8")


def _recalled(
    arguments: argparse.Namespace, sides: dict[str, Logits], console: Console
) -> dict[str, dict[str, dict[str, float]]]:
    """By side and probe: the share of answers told right, their nats, and how many there were."""
    from compiler.frontends import LoadOptions, load_model
    from compiler.registry import Registry

    registry = Registry()
    program = load_model(str(arguments.checkpoint), LoadOptions(), registry.frontends().values())
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sides}
    for probe_name in PROBES:
        probe = registry.probes()[probe_name]()
        assert isinstance(probe, RecallProbe)
        drawn = drawn_recalls(program, probe, arguments.answers)
        count = sum(len(one.answers) for one in drawn)
        for name, run in sides.items():
            score = recall_score(drawn, (run(one.tokens.numpy().astype(np.int64)) for one in drawn))
            found[name][probe_name] = {"accuracy": score.accuracy, "nats": score.nats, "answers": count}
        shares = ", ".join(f"{name} {one[probe_name]['accuracy']:.3f}" for name, one in found.items())
        console.print(f"{probe_name}, {count} answers: {shares}", markup=False)
    return found


def _made(folder: Path | None) -> dict[str, Any]:
    """How an artifact was healed."""
    if folder is None:
        return {}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {"recipe": manifest.get("recipe"), "healing": manifest.get("healing")}


def _page(record: dict[str, Any]) -> str:
    return "# What hybrids keep\n\n" + "\n".join(map(_section, record["runs"]))


def _section(run: dict[str, Any]) -> str:
    original = run["sides"][ORIGINAL]["recall"]
    table = [["side", "perplexity ratio", "KL, nats", "top-1 kept", *(f"{name} (of original)" for name in PROBES)]]
    table.append(["---"] * len(table[0]))
    for name, one in run["sides"].items():
        ratio = f"{one['perplexity_ratio']:.4f} ± {one['ratio_standard_error']:.4f}"
        recall = []
        for probe in PROBES:
            share = one["recall"][probe]["accuracy"]
            recall.append(f"{share:.3f} ({share / max(original[probe]['accuracy'], 1e-9):.3f})")
        table.append([name, ratio, f"{one['kl_divergence']:.4f}", f"{one['top1_agreement'] * 100:.1f} %", *recall])
    answers = ", ".join(f"{name} {int(original[name]['answers'])}" for name in PROBES)
    about = (
        f"{run['checkpoint']}: {run['tokens']:,} tokens held out ({run['judged_on']}), windows of {run['window']}; "
        f"answers: {answers}."
    )
    return f"{about}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not (Path(path) / "manifest.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ARTIFACT")
    return name, Path(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("artifacts", type=_named, nargs="+", metavar="NAME=ARTIFACT")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20 * 1024)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--add", action="store_true", help="keep what earlier runs measured")
    arguments = parser.parse_args()
    arguments.artifacts = dict(arguments.artifacts)
    return arguments


if __name__ == "__main__":
    main()
