"""What a model's folder says of generating text, in the ways that folders say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compiler.generation_record import TEMPLATE_NAME, boundary_tokens, chat_template, copy_chat_template
from compiler.runtime.manifest import GenerationRecord
from tests.runtime.small_decoder import BEGIN, CHAT_TEMPLATE, END, SPECIAL, write_character_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose special tokens are named, and no other file."""
    return write_character_tokenizer(tmp_path / "model", template=False)


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Add entries to a .json file of the folder."""
    file = folder / name
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | content))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (BEGIN, (END,))),
        ({"config.json": {"eos_token_id": 7, "bos_token_id": 6}}, (6, (7, END))),
        ({"config.json": {"text_config": {"eos_token_id": 7, "bos_token_id": None}}}, (BEGIN, (7, END))),
        (
            {"generation_config.json": {"eos_token_id": [9, 8]}, "config.json": {"eos_token_id": 8}},
            (BEGIN, (9, 8, END)),
        ),
        ({"tokenizer_config.json": {"eos_token": None, "bos_token": "never heard of"}}, (None, ())),
    ],
)
def test_where_texts_begin_and_end(folder: Path, files: dict[str, dict[str, Any]], expected: tuple[Any, Any]) -> None:
    for name, content in files.items():
        write(folder, name, content)
    assert boundary_tokens(folder) == expected


def test_where_the_chat_template_is(folder: Path) -> None:
    assert chat_template(folder) is None
    write(folder, "tokenizer_config.json", {"chat_template": [{"name": "tools", "template": "t"}]})
    assert chat_template(folder) is None
    write(folder, "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "listed"}]})
    assert chat_template(folder) == "listed"
    write(folder, "tokenizer_config.json", {"chat_template": "entry"})
    assert chat_template(folder) == "entry"
    (folder / TEMPLATE_NAME).write_text(CHAT_TEMPLATE)
    assert chat_template(folder) == CHAT_TEMPLATE


def test_the_template_is_copied_with_the_tokens_that_it_names(folder: Path, tmp_path: Path) -> None:
    record = GenerationRecord(states=(), vocabulary_size=64)
    assert copy_chat_template(record, folder, tmp_path) == record
    (folder / TEMPLATE_NAME).write_text(CHAT_TEMPLATE)
    copied = copy_chat_template(record, folder, tmp_path)
    assert (tmp_path / TEMPLATE_NAME).read_text() == CHAT_TEMPLATE
    assert copied.chat_template == TEMPLATE_NAME
    assert copied.template_tokens == {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
