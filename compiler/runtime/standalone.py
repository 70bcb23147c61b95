"""Runs the artifact in this folder. Needs numpy and onnxruntime, and tokenizers for --text; nothing else of regraft.

python run.py --text "a sentence" --text "another"
python run.py --input inputs.npz --output outputs.npz
python run.py --verify
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
TEXT_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

ERRORS_ONLY = 3


def main() -> int:
    """Do what the arguments say; the exit code is 1 when a check fails."""
    usage = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=usage)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--text", action="append", help="a text to run on; may be given again")
    work.add_argument("--input", type=Path, help="an .npz with one array an input")
    work.add_argument("--verify", action="store_true", help="check every file and the golden outputs")
    parser.add_argument("--output", type=Path, help="write the outputs to this .npz")
    parser.add_argument("--threads", type=int, help="processor threads to use")
    arguments = parser.parse_args()

    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    if arguments.verify:
        return verify(manifest, arguments.threads)
    inputs = encode(manifest, arguments.text) if arguments.text else dict(np.load(arguments.input, allow_pickle=False))
    outputs = run(manifest, inputs, arguments.threads)
    for name, array in outputs.items():
        print(f"{name}: {array.dtype}{list(array.shape)}")
        print(np.array2string(array, precision=4, threshold=32, edgeitems=3))
    if arguments.output:
        np.savez(arguments.output, **outputs)
    return 0


def run(manifest: dict[str, Any], inputs: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """The outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads:
        options.intra_op_num_threads = threads
    for key, value in manifest["runtime"]["options"].items():
        options.add_session_config_entry(key, str(value))
    path = FOLDER / manifest["runtime"]["entry"]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output["name"] for output in manifest["outputs"]]
    return dict(zip(names, session.run(names, inputs), strict=True))


def encode(manifest: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Texts into one batch of inputs, padded to the longest and cut at the model's limit."""
    from tokenizers import Tokenizer

    if manifest.get("generation"):
        sys.exit("this model continues prompts: pip install regraft, then compile run FOLDER --prompt TEXT")
    settings = manifest["text"]
    if settings is None:
        sys.exit("this model takes no text: give --input F.npz")
    tokenizer = Tokenizer.from_file(str(FOLDER / settings["tokenizer"]))
    if settings["maximum_tokens"] is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length=settings["maximum_tokens"])
    fixed = settings["fixed_tokens"]
    tokenizer.enable_padding(pad_id=settings["padding_id"], pad_token=settings["padding_token"], length=fixed)
    rows = tokenizer.encode_batch(texts)
    return {
        spec["name"]: np.array([getattr(row, TEXT_FIELDS[spec["name"]]) for row in rows], spec["dtype"])
        for spec in manifest["inputs"]
    }


def verify(manifest: dict[str, Any], threads: int | None = None) -> int:
    """Compare every file with its sha256, then the outputs on the golden inputs with the golden outputs."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    wrong = [] if hashlib.sha256(text.encode()).hexdigest() == manifest.get("sha256") else ["manifest.json was changed"]
    for name, record in manifest["files"].items():
        if sha256_of(FOLDER / name) != record["sha256"]:
            wrong.append(f"{name} is missing or was changed")
    if not wrong:
        golden = np.load(FOLDER / manifest["golden"]["file"], allow_pickle=False)
        inputs = {spec["name"]: golden[f"inputs/{spec['name']}"] for spec in manifest["inputs"]}
        for name, found in run(manifest, inputs, threads).items():
            group = "outputs" if f"outputs/{name}" in golden else "reference"
            expected = golden[f"{group}/{name}"]
            allowed = manifest["golden"]["tolerance"] if expected.dtype.kind == "f" else 0.0
            scale = np.abs(expected.astype(float)).max(initial=1e-6)
            error = np.abs(found.astype(float) - expected.astype(float)).max(initial=0.0) / scale
            if found.shape != expected.shape or not error <= allowed:
                wrong.append(f"{name} is off by {error:.2g}, and {allowed:.2g} is allowed")
    print("\n".join(wrong) if wrong else "every file and every output is as it was where this was made")
    return 1 if wrong else 0


def sha256_of(path: Path) -> str | None:
    """The sha256 of a file, or None when there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
