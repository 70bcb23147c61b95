"""manifest.json: what an artifact is, what it needs, and the sha256 of everything in it.

The text is canonical (sorted keys, two spaces) and carries the sha256 of the rest of itself, so that a changed byte
anywhere in it is noticed. That finds damage, not malice: to trust a stranger's artifact compare `digest` with the one
its maker published.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from compiler.errors import CompilerError
from compiler.runtime.strict_json import MalformedJsonError, build, parse_json, to_json

FORMAT = "regraft artifact"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
LARGEST_MANIFEST_BYTES = 16 * 2**20

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class DimensionRange:
    """The sizes a named dim may have: from `minimum` to `maximum` inclusive (None is no limit), in multiples."""

    minimum: int = 1
    maximum: int | None = None
    multiple: int = 1

    def __str__(self) -> str:
        range_ = f"{self.minimum} or more" if self.maximum is None else f"{self.minimum} to {self.maximum}"
        return range_ if self.multiple == 1 else f"{range_} in multiples of {self.multiple}"

    def allows(self, size: int) -> bool:
        """Whether the dim may have this size."""
        return size >= self.minimum and (self.maximum is None or size <= self.maximum) and size % self.multiple == 0

    def nearest(self, wanted: int) -> int:
        """An allowed size near `wanted`, rounded up where there is room."""
        size = -(-max(wanted, self.minimum) // self.multiple) * self.multiple
        return size if self.maximum is None else min(size, self.maximum // self.multiple * self.multiple)


@dataclass(frozen=True)
class TensorRecord:
    """Name, dtype (numpy's word, as in `float32`) and shape (sizes and dim names) of one input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class RuntimeRecord:
    """The engine that opens the payload.

    `entry` is the file to open. `requires` has the least version of each package. `instructions` are the processor's,
    in the words of Linux's /proc/cpuinfo. `options` are the engine's own.
    """

    name: str
    entry: str
    requires: dict[str, str] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()
    options: dict[str, str | int | bool] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenRecord:
    """The file of golden inputs and outputs, and how near a device must come to them.

    `tolerance` bounds the largest difference of a floating-point output, relative to its largest golden magnitude.
    """

    file: str
    tolerance: float


@dataclass(frozen=True)
class TextRecord:
    """How text becomes inputs: the tokenizer's file, the most tokens the model takes, and the token that pads a batch.

    `fixed_tokens` is the length to pad to where the model takes no other; otherwise a batch is padded to its longest
    text.
    """

    tokenizer: str
    maximum_tokens: int | None
    fixed_tokens: int | None
    padding_token: str
    padding_id: int


@dataclass(frozen=True)
class StateRecord:
    """A state that a call takes as the input `past` and gives back as the output `present`, of one shape and dtype."""

    past: str
    present: str


@dataclass(frozen=True)
class GenerationRecord:
    """How a causal language model generates token by token.

    `context_length` is the most tokens of a prompt and its continuation together. A token of `end_tokens` ends a text;
    `beginning_token` stands for an empty prompt. `chat_template` is a file with a jinja template for messages, and
    `template_tokens` are the special tokens that it names, such as `bos_token`.
    """

    states: tuple[StateRecord, ...]
    vocabulary_size: int
    context_length: int | None = None
    end_tokens: tuple[int, ...] = ()
    beginning_token: int | None = None
    chat_template: str | None = None
    template_tokens: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PassRecord:
    """A pass that was run, with its options."""

    name: str
    options: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything manifest.json says. `versions` are those of the packages that made the artifact."""

    regraft: str
    name: str
    role: str
    backend: str
    target: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    dimensions: dict[str, DimensionRange]
    runtime: RuntimeRecord
    golden: GoldenRecord
    files: dict[str, FileRecord]
    text: TextRecord | None = None
    generation: GenerationRecord | None = None
    passes: tuple[PassRecord, ...] = ()
    evidence: dict[str, Scalar] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_text(self) -> str:
        """The canonical text, with the sha256 of itself."""
        content = to_json(self)
        return _canonical({**content, "sha256": _digest(content)})

    @property
    def digest(self) -> str:
        """The sha256 that stands for the whole artifact, since it covers that of every file."""
        return _digest(to_json(self))


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an artifact. Raises CompilerError when there is none that can be trusted."""
    path = folder / MANIFEST_NAME
    doing = f"reading {path}"
    try:
        return parse_manifest(_read_text(folder))
    except _LaterFormatError as later:
        raise CompilerError(doing, str(later), "Upgrade regraft, or use the run.py inside the artifact.") from None
    except MalformedJsonError as problem:
        hint = "The file was changed or cut short after it was written: copy the artifact again from where it was made."
        raise CompilerError(doing, str(problem), hint) from None


def parse_manifest(text: str) -> Manifest:
    """Check a manifest's text and build it. Raises MalformedJsonError."""
    content = parse_json(text)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MalformedJsonError(f'it is not a manifest of an artifact ("format" is not {FORMAT!r})')
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise _LaterFormatError(f"its format is version {version}, and this regraft reads up to {FORMAT_VERSION}")
    recorded = content.pop("sha256", None)
    if recorded != _digest(content) or text != _canonical({**content, "sha256": recorded}):
        raise MalformedJsonError("its text does not match the sha256 that it carries")
    manifest = build(Manifest, content)
    _check_files(manifest)
    return manifest


def claimed_files(folder: Path) -> frozenset[str] | None:
    """The files that a folder's manifest names as the artifact's, even when it is damaged or of a later format.

    None when the folder does not claim to be an artifact.
    """
    try:
        content = parse_json(_read_text(folder))
    except (CompilerError, MalformedJsonError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    files = content.get("files")
    return frozenset([MANIFEST_NAME, *(files if isinstance(files, dict) else ())])


class _LaterFormatError(MalformedJsonError):
    """The manifest is of a format that this version cannot know."""


def _read_text(folder: Path) -> str:
    doing = f"opening artifact {folder}"
    path = folder / MANIFEST_NAME
    hint = "Name the folder that `compile ... -o FOLDER` wrote."
    if not folder.exists():
        raise CompilerError(doing, "there is no such folder", hint)
    if not folder.is_dir():
        raise CompilerError(doing, "it is not a folder", hint)
    if path.is_symlink() or not path.is_file():
        raise CompilerError(doing, f"it has no {MANIFEST_NAME}", hint)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_MANIFEST_BYTES + 1)
        if len(data) > LARGEST_MANIFEST_BYTES:
            raise MalformedJsonError(f"it has more than {LARGEST_MANIFEST_BYTES} bytes")
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedJsonError("it is not UTF-8 text") from None
    except OSError as error:
        raise CompilerError(
            doing, f"{MANIFEST_NAME} cannot be read: {error.strerror}", "Check the permissions."
        ) from None


def _check_files(manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        if not is_safe_name(name):
            raise MalformedJsonError(f"files: {name!r} does not stay inside the artifact")
        if not re.fullmatch(r"[0-9a-f]{64}", record.sha256) or record.bytes < 0:
            raise MalformedJsonError(f"files.{name}: it has no valid sha256 and size")
    named = {"runtime.entry": manifest.runtime.entry, "golden.file": manifest.golden.file}
    if manifest.text is not None:
        named["text.tokenizer"] = manifest.text.tokenizer
    if manifest.generation is not None and manifest.generation.chat_template is not None:
        named["generation.chat_template"] = manifest.generation.chat_template
    for where, name in named.items():
        if name not in manifest.files:
            raise MalformedJsonError(f"{where}: {name!r} is not among the files")
    for spec in manifest.inputs:
        for dim in spec.shape:
            if isinstance(dim, str) and dim not in manifest.dimensions:
                raise MalformedJsonError(f"inputs.{spec.name}: dim {dim!r} is not among the dimensions")
    if manifest.generation is not None:
        _check_states(manifest, manifest.generation)


def _check_states(manifest: Manifest, generation: GenerationRecord) -> None:
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name: spec for spec in manifest.outputs}
    for index, state in enumerate(generation.states):
        past, present = inputs.get(state.past), outputs.get(state.present)
        if past is None or present is None:
            raise MalformedJsonError(f"generation.states[{index}]: there is no such input and output")
        if (past.dtype, past.shape) != (present.dtype, present.shape):
            raise MalformedJsonError(f"generation.states[{index}]: {past} and {present} differ")


def is_safe_name(name: str) -> bool:
    """Whether a file's name is relative, in its shortest form, inside its folder, and the same on every system."""
    path = PurePosixPath(name)
    plain = not re.search(r'[\\:*?"<>|\x00-\x1f]', name)
    return (
        plain
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and name not in (".", MANIFEST_NAME)
    )


def _digest(content: object) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: object) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
