"""Where a model's tokenizer is, as the one file tokenizer.json that the runtime reads."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

TOKENIZER = "tokenizer.json"
GENERATION_SETTINGS = ("config.json", "generation_config.json")
"""Files that name the tokens that end a text."""
CONVERTIBLE = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def tokenizer_of_folder(folder: Path) -> Path | None:
    """The folder itself where it has tokenizer.json, else a folder with a converted one, else None."""
    if (folder / TOKENIZER).is_file():
        return folder
    if any((folder / name).is_file() for name in CONVERTIBLE):
        return converted_tokenizer(folder)
    return None


def converted_tokenizer(folder: Path, gguf_file: str | None = None) -> Path | None:
    """A new folder with tokenizer.json, gone when the process ends; None where the tokenizer cannot be converted."""
    from transformers import AutoTokenizer

    reading = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **reading)
    except Exception:  # converters fail in their own ways; a model without tokenizer is still a model
        return None
    written = Path(tempfile.mkdtemp(prefix="regraft-tokenizer-"))
    atexit.register(shutil.rmtree, written, ignore_errors=True)
    tokenizer.save_pretrained(written)
    for name in GENERATION_SETTINGS:
        if gguf_file is None and (folder / name).is_file():
            shutil.copyfile(folder / name, written / name)
    return written if (written / TOKENIZER).is_file() else None
