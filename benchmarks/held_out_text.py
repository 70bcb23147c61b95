"""Documents of a folder: most to calibrate with, the rest, which no compile sees, to be judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUFFIXES = (".txt", ".md", ".rst")
HELD_OUT_EVERY = 8
LEAST_BYTES = 4096


@dataclass(frozen=True)
class TextFolder:
    """Files in order of their names, shared out by turns: every eighth document is held out."""

    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @property
    def said(self) -> str:
        """What is judged on, in words that tell one folder from another."""
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in self.held_out)).hexdigest()
        return f"{len(self.held_out)} documents, {digest[:8]}"

    @classmethod
    def read(cls, folder: Path) -> TextFolder:
        """Documents below `folder` that are long enough to judge by."""
        files = sorted(
            path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.stat().st_size >= LEAST_BYTES
        )
        if len(files) < HELD_OUT_EVERY:
            raise SystemExit(f"{folder} holds {len(files)} documents of {LEAST_BYTES} bytes; at least 8 are needed")
        held_out = files[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
        return cls(tuple(path for path in files if path not in set(held_out)), tuple(held_out))

    def link_calibration(self, folder: Path) -> Path:
        """A folder with links to the calibration documents alone."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, path in enumerate(self.calibration):
            link = folder / f"{index:05}.txt"
            if not link.exists():
                link.symlink_to(path.resolve())
        return folder


def held_out_windows(files: Sequence[Path], tokenizer_file: Path, window: int, token_count: int) -> list[np.ndarray]:
    """Windows [window] of token ids, int64, as evenly from all documents as they go: at least `token_count` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    wanted = -(-token_count // window)
    share = max(1, -(-wanted // len(files)))
    windows: list[np.ndarray] = []
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")[: (share + 1) * window * 8]
        ids = tokenizer.encode(text).ids
        windows += [np.array(ids[i * window : (i + 1) * window]) for i in range(min(share, len(ids) // window))]
    step = max(1, len(windows) // wanted)
    return windows[::step][:wanted]
