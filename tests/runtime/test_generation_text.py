"""Token ids into text as they come, stop strings, and chat templates, against tokenizers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_decoder import CHAT_TEMPLATE, SPECIAL, write_character_tokenizer
from tokenizers import Tokenizer

from compiler.errors import CompilerError
from compiler.runtime.generation.chat_template import ChatTemplate
from compiler.runtime.generation.token_text import StopStrings, TextStream
from compiler.runtime.text import read_tokenizer

FIRST_BYTE, SECOND_BYTE = 62, 63


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a character; `ä` is two."""
    return read_tokenizer(write_character_tokenizer(tmp_path_factory.mktemp("text")) / "tokenizer.json")


def streamed(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """The pieces, the last of them what was held back."""
    stream = TextStream(tokenizer, [5, 6], stop)
    return [*(stream.add(token) for token in tokens), stream.end()]


def test_a_character_of_two_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("maä b").ids
    assert tokens[2:4] == [FIRST_BYTE, SECOND_BYTE]
    assert streamed(tokenizer, tokens) == ["m", "a", "", "ä", " ", "b", ""]
    assert streamed(tokenizer, tokens[:3]) == ["m", "a", "", ""]


@given(st.lists(st.integers(0, FIRST_BYTE - 1) | st.just((FIRST_BYTE, SECOND_BYTE)), max_size=40))
def test_the_pieces_are_the_text(tokenizer: Tokenizer, parts: list[Any]) -> None:
    tokens = [token for part in parts for token in (part if isinstance(part, tuple) else (part,))]
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


@given(st.lists(st.integers(0, SECOND_BYTE), max_size=40))
def test_any_ids_give_text_without_half_characters(tokenizer: Tokenizer, tokens: list[int]) -> None:
    found = "".join(streamed(tokenizer, tokens))
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert whole.startswith(found)
    assert set(whole[len(found) :]) <= {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("one two", ("two",), ["o", "n", "e", " ", "", "", "", ""]),
        ("one tw", ("two",), ["o", "n", "e", " ", "", "", "tw"]),
        ("a tto two", ("two", "tto"), ["a", " ", "", "", "", "", "", "", "", ""]),
        ("bab", ("c",), ["b", "a", "b", ""]),
    ],
)
def test_stop_strings_over_several_tokens(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], pieces: list[str]
) -> None:
    assert streamed(tokenizer, tokenizer.encode(text).ids, stop) == pieces


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_however_the_text_is_cut(text: str, stop: list[str], data: st.DataObject) -> None:
    stops, found, stopped, rest = StopStrings(stop), "", False, text
    while rest and not stopped:
        size = data.draw(st.integers(1, len(rest)))
        piece, stopped = stops.add(rest[:size])
        found, rest = found + piece, rest[size:]
    places = [place for place in map(text.find, stop) if place >= 0]
    first_end = min((text.find(one) + len(one) for one in stop if one in text), default=None)
    assert stopped == bool(places)
    if not stopped:
        assert found + stops.held == text
    else:
        assert text.startswith(found)
        assert len(found) <= first_end
        assert not any(one in found for one in stop)


TEMPLATES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks": "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'system' %}\n    {% continue %}\n"
    "    {% endif %}\n  {% generation %}[{{ m.role | upper }}] {{ m.content | trim }}{% endgeneration %}\n{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ tools is none }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "small": CHAT_TEMPLATE,
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße <b> & 'so' 猫 "},
    {"role": "assistant", "content": "Hm?"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_messages_are_rendered_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    file = write_character_tokenizer(tmp_path) / "tokenizer.json"
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token=SPECIAL[0], eos_token=SPECIAL[1], chat_template=TEMPLATES[name]
    )
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    found = ChatTemplate(TEMPLATES[name], {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}).render(MESSAGES)
    assert found == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses these messages"),
        ("{{ messages[9].content + 1 }}", "refuses these messages"),
        ("{% for %}", "line 1"),
    ],
)
def test_a_template_that_fails_says_why(source: str, problem: str) -> None:
    with pytest.raises(CompilerError, match=problem):
        ChatTemplate(source, {}).render(MESSAGES)
