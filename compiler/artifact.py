"""Writing an artifact: one folder that holds everything to run, check and reproduce a compiled model.

    with staged_artifact(folder) as staging:
        lowered = backend.lower(program, target, staging)      the payload
        draft = ArtifactDraft(staging, lowered, contents)      tokenizer, golden inputs and outputs, recipe
        ...measure draft.session...                            the payload as it will run
        draft.finish(evidence, reports)                        reports, run.py, manifest.json

The folder appears at the end of the block, whole; an artifact that stood there before is replaced in one step, or
stays as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler import __version__
from compiler.errors import CompilerError
from compiler.generation_record import copy_chat_template
from compiler.runtime.engines import open_engine
from compiler.runtime.golden import Golden, write_golden
from compiler.runtime.integrity import present_files, sha256_of
from compiler.runtime.manifest import (
    MANIFEST_NAME,
    DimensionRange,
    FileRecord,
    GenerationRecord,
    GoldenRecord,
    Manifest,
    PassRecord,
    RuntimeRecord,
    Scalar,
    TensorRecord,
    claimed_files,
    is_safe_name,
)
from compiler.runtime.session import Session
from compiler.runtime.verify import compare_outputs
from compiler.staged_folder import staged_folder
from compiler.tokenizer_folder import copy_tokenizer, token_range

if TYPE_CHECKING:
    from compiler.backend import Lowered

GOLDEN_NAME = "golden.npz"
RECIPE_NAME = "recipe.toml"
RUNNER_NAME = "run.py"
STANDALONE = Path(__file__).parent / "runtime" / "standalone.py"

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACE_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENAMETOOLONG, errno.EIO, errno.ENOTDIR)
FULL_BELOW_BYTES = 2**20

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ArtifactContents:
    """Everything of an artifact but its payload and its reports.

    `reference` is what the Program gives in eager on `golden_inputs`; `tolerance` bounds how far the payload may be
    from it, relative to the largest magnitude of each output. `runs_here` says whether this machine can open the
    payload.
    """

    name: str
    role: str
    backend: str
    target: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    dimensions: dict[str, DimensionRange]
    golden_inputs: Arrays
    reference: Arrays
    tolerance: float
    recipe: str
    passes: tuple[PassRecord, ...] = ()
    tokenizer: Path | None = None
    generation: GenerationRecord | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    runs_here: bool = True


class ArtifactDraft:
    """An artifact on its way. `session` is its payload, open; None when this machine cannot run it."""

    def __init__(self, staging: Path, lowered: Lowered, contents: ArtifactContents) -> None:
        """Write what does not depend on measurements, and check the payload on the golden inputs.

        Raises CompilerError when the payload cannot be opened or gives other numbers than the Program.
        """
        self._staging = staging
        self._contents = contents
        text, generation = None, contents.generation
        if contents.tokenizer is not None:
            text = copy_tokenizer(contents.tokenizer, staging, token_range(contents.inputs, contents.dimensions))
            if generation is not None:
                generation = copy_chat_template(generation, contents.tokenizer, staging)
        self._manifest = Manifest(
            regraft=__version__,
            name=contents.name,
            role=contents.role,
            backend=contents.backend,
            target=contents.target,
            inputs=contents.inputs,
            outputs=contents.outputs,
            dimensions=contents.dimensions,
            runtime=RuntimeRecord(
                name=lowered.runtime,
                entry=lowered.entry,
                requires=dict(lowered.requires),
                instructions=tuple(lowered.instructions),
                options=dict(lowered.options),
                kernels=dict(lowered.kernels),
            ),
            golden=GoldenRecord(GOLDEN_NAME, contents.tolerance),
            files={},
            text=text,
            generation=generation,
            passes=contents.passes,
            versions=contents.versions,
            notes=(*contents.notes, *lowered.notes),
        )
        self.session = self._open() if contents.runs_here else None
        outputs = self.session.run(contents.golden_inputs) if self.session is not None else {}
        self._golden = Golden(contents.golden_inputs, contents.reference, outputs)
        self._check_lowering()

    def finish(self, evidence: Mapping[str, Scalar], reports: Mapping[str, bytes]) -> Manifest:
        """Write the reports (bytes by file name), golden.npz, recipe.toml, run.py and, last, the manifest of it all."""
        write_golden(self._staging / GOLDEN_NAME, self._golden)
        (self._staging / RECIPE_NAME).write_text(self._contents.recipe, encoding="utf-8")
        if self._manifest.runtime.name == "onnxruntime":
            shutil.copyfile(STANDALONE, self._staging / RUNNER_NAME)
        for name, content in reports.items():
            (self._staging / name).write_bytes(content)
        names = sorted(present_files(self._staging))
        assert all(map(is_safe_name, names)), names
        files = {
            name: FileRecord(sha256_of(self._staging / name), (self._staging / name).stat().st_size) for name in names
        }
        manifest = replace(self._manifest, files=files, evidence=dict(evidence))
        (self._staging / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
        return manifest

    def _open(self) -> Session:
        return Session(self._staging, self._manifest, open_engine(self._staging, self._manifest))

    def _check_lowering(self) -> None:
        if not self._golden.outputs:
            return
        against_reference = replace(self._golden, outputs={})
        for output in compare_outputs(self._golden.outputs, against_reference, self._manifest):
            if not output.passed:
                problem = f"output {output.name} moved by {output.error:.2g} (allowed: {output.tolerance:.2g})"
                hint = "The backend is at fault, not the model: try --backend eager and report it."
                raise CompilerError(f"checking what {self._contents.backend} lowered", problem, hint)


def check_output_folder(folder: Path) -> None:
    """Raise CompilerError when an artifact cannot be put at `folder`: better before the long work than after it."""
    doing = f"writing {folder}"
    if folder.exists() and not folder.is_dir():
        raise CompilerError(doing, "it is a file", "Name a folder with -o: a new one, or an artifact to replace.")
    if folder.is_dir():
        _check_replaceable(doing, folder)
    parent = folder.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CompilerError(doing, f"{parent} is a file", "Name a folder with -o.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CompilerError(doing, f"{parent} cannot be written to", "Name a folder with -o that you may write.")


@contextmanager
def staged_artifact(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write an artifact into; it replaces `folder` in one step when the block ends.

    When the block raises, nothing is left of it. Raises CompilerError when `folder` may not be replaced or the disk
    refuses.
    """
    check_output_folder(folder)
    with _disk_explained(folder), staged_folder(folder) as staging:
        with _disk_explained(folder):
            yield staging
        if not (staging / MANIFEST_NAME).is_file():
            raise RuntimeError("the artifact was not finished: call ArtifactDraft.finish()")


def _check_replaceable(doing: str, folder: Path) -> None:
    if os.path.ismount(folder):
        raise CompilerError(
            doing, "something is mounted there", f"Name a folder inside it, such as {folder / 'model'}."
        )
    present = present_files(folder)
    claimed = claimed_files(folder)
    if claimed is None and (present or any(folder.iterdir())):
        problem = "the folder is not empty and holds no artifact"
        raise CompilerError(doing, problem, "Name a new folder with -o, or remove this one first.")
    foreign = sorted(present - (claimed or frozenset()))
    if foreign:
        listed = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise CompilerError(doing, f"the artifact there also holds {listed}", "Move what is yours out of it first.")


@contextmanager
def _disk_explained(folder: Path) -> Iterator[None]:
    """Turn errors of the block that the disk caused into CompilerErrors."""
    try:
        yield
    except CompilerError:
        raise
    except Exception as error:
        refusal = _disk_refusal(folder, error)
        if refusal is None:
            raise
        raise refusal from error


def _disk_refusal(folder: Path, error: Exception) -> CompilerError | None:
    """The user's view of an error that the disk caused; None for any other error.

    Libraries wrap what the disk said, or only say that writing failed: then the free space tells.
    """
    doing = f"writing {folder}"
    space = "Free some space, or name a folder on another disk with -o. Nothing was left there."
    number = next((cause.errno for cause in _causes(error) if isinstance(cause, OSError)), None)
    if number in DISK_ERRORS or (number is None and _free_bytes(folder) < FULL_BELOW_BYTES):
        return CompilerError(doing, "the disk is full", space)
    if number in PLACE_ERRORS:
        return CompilerError(
            doing, f"the disk refuses: {os.strerror(number)}", "Name a folder with -o that you may write."
        )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free_bytes(folder: Path) -> int:
    parent = folder.resolve().parent
    while not parent.exists():
        parent = parent.parent
    return shutil.disk_usage(parent).free
