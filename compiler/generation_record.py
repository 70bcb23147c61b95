"""What a language model's folder says of generating text: where a text begins and ends, and its chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.runtime.manifest import GenerationRecord, StateRecord
from compiler.runtime.text import read_tokenizer
from compiler.tokenizer_folder import TOKENIZER_NAME, read_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from compiler.program import Program

TEMPLATE_NAME = "chat_template.jinja"
TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
"""Special tokens that a chat template may name, as in tokenizer_config.json."""


def generation_record(program: Program) -> GenerationRecord | None:
    """How an incremental Program generates; None for any other Program. The chat template comes with the files."""
    if not program.states:
        return None
    logits = program.outputs[0].shape[-1]
    assert isinstance(logits, int), "the vocabulary has a fixed size"
    record = GenerationRecord(
        states=tuple(StateRecord(state.past, state.present) for state in program.states),
        vocabulary_size=logits,
        context_length=program.context_length,
    )
    if program.tokenizer is None:
        return record
    beginning, ends = boundary_tokens(program.tokenizer)
    return replace(record, beginning_token=beginning, end_tokens=ends)


def boundary_tokens(folder: Path) -> tuple[int | None, tuple[int, ...]]:
    """The id that begins a text, or None, and those that end one: all that any file of the folder names.

    A chat model's generation_config.json may forget the token that ends a turn, which its tokenizer then has.
    """
    tokenizer = read_tokenizer(folder / TOKENIZER_NAME)
    special = special_tokens(folder)
    ends: dict[int, None] = {}
    beginnings: list[int] = []
    for file in ("generation_config.json", "config.json"):
        settings = read_settings(folder / file)
        for part in (settings, settings.get("text_config", {})):
            ends |= dict.fromkeys(_ids(part, "eos_token_id"))
            beginnings += _ids(part, "bos_token_id")
    ends |= dict.fromkeys(_named(tokenizer, special, "eos_token"))
    beginnings += _named(tokenizer, special, "bos_token")
    return next(iter(beginnings), None), tuple(ends)


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, by role."""
    settings = read_settings(folder / "tokenizer_config.json")
    found = {}
    for role in TEMPLATE_TOKENS:
        token = settings.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[role] = content
    return found


def copy_chat_template(record: GenerationRecord, source: Path, folder: Path) -> GenerationRecord:
    """Put the chat template of the model's folder `source` into `folder`: the record that names it."""
    template = chat_template(source)
    if template is None:
        return record
    (folder / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    return replace(record, chat_template=TEMPLATE_NAME, template_tokens=special_tokens(source))


def chat_template(folder: Path) -> str | None:
    """The template for plain messages: a file of its own, or an entry of tokenizer_config.json."""
    file = folder / TEMPLATE_NAME
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        entry = read_settings(folder / name).get("chat_template")
        if isinstance(entry, list):
            named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
            entry = named.get("default")
        if isinstance(entry, str):
            return entry
    return None


def _ids(settings: Mapping[str, Any], name: str) -> Iterator[int]:
    value = settings.get(name)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not isinstance(item, bool):
            yield item


def _named(tokenizer: Tokenizer, special: Mapping[str, str], role: str) -> list[int]:
    found = tokenizer.token_to_id(special[role]) if role in special else None
    return [] if found is None else [int(found)]
