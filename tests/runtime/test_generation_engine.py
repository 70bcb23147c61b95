"""Many texts at once: each must be what it is alone, whatever comes, goes or fails beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_decoder import BEGIN, CONTEXT, END, VOCABULARY, SmallDecoder, write_decoder

from compiler.errors import CompilerError
from compiler.runtime.generation.decoder import CHUNK, Decoder
from compiler.runtime.generation.engine import Engine
from compiler.runtime.generation.prompt_lookup import PromptLookup
from compiler.runtime.generation.request import Token
from compiler.runtime.generation.sampling import SamplingOptions

REFERENCE = SmallDecoder()
PROMPTS = ("Hello", "a", "What is it", "the cat sat on the mat", "Zz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose texts never end by themselves."""
    base = tmp_path_factory.mktemp("engine")
    write_decoder(base / "out", base / "model", end_tokens=())
    return base / "out"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """Two places for any number of texts."""
    with Engine.open(folder, slots=2, threads=1) as opened:
        yield opened


def greedy(count: int, **options: object) -> SamplingOptions:
    """The likeliest `count` tokens."""
    return SamplingOptions(max_tokens=count, **options)


def test_the_tokens_are_those_of_the_reference(engine: Engine) -> None:
    prompt = engine.encode("Hello there")
    tokens = list(engine.submit(prompt, greedy(12)))
    assert [token.id for token in tokens] == REFERENCE.greedy(prompt, 12, ())
    assert [token.finish_reason for token in tokens] == [None] * 11 + ["length"]


@pytest.mark.parametrize("recurrent", [False, True], ids=["attention", "hybrid"])
def test_texts_side_by_side_are_what_they_are_alone(tmp_path: Path, recurrent: bool) -> None:
    write_decoder(tmp_path / "out", tmp_path / "model", recurrent=recurrent, end_tokens=())
    reference = SmallDecoder(recurrent=recurrent)
    with Engine.open(tmp_path / "out", slots=3, threads=1) as engine:
        prompts = [engine.encode(text) for text in PROMPTS]
        counts = [9, 3, 14, 6, 11]
        requests = [engine.submit(prompt, greedy(count)) for prompt, count in zip(prompts, counts, strict=True)]
        for request in requests:
            request.text()
    expected = [reference.greedy(prompt, count, ()) for prompt, count in zip(prompts, counts, strict=True)]
    assert [request.tokens for request in requests] == expected


def test_a_long_prompt_is_read_while_another_text_runs(engine: Engine) -> None:
    first = engine.submit(engine.encode("Hello"), greedy(40))
    next(iter(first))
    long = [2 + (5 * index) % 60 for index in range(3 * CHUNK + 7)]
    second = engine.submit(long, greedy(5))
    assert [request.text() is not None for request in (first, second)] == [True, True]
    assert first.tokens == REFERENCE.greedy(first.prompt, 40, ())
    assert second.tokens == REFERENCE.greedy(long, 5, ())


def slow_down(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take 10 ms or more, so that a cancellation comes before the end on any machine."""
    decode = engine._decoder.decode
    monkeypatch.setattr(engine._decoder, "decode", lambda tokens: (time.sleep(0.01), decode(tokens))[1])


def test_a_cancelled_text_frees_its_place_and_the_others_go_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(engine, monkeypatch)
    first = engine.submit(engine.encode("Hello"), greedy(500))
    second = engine.submit(engine.encode("a"), greedy(20))
    waiting = engine.submit(engine.encode("Zz"), greedy(4))
    dropped = engine.submit(engine.encode("Zz"), greedy(4))
    next(iter(first))
    dropped.cancel()
    first.cancel()
    assert dropped.text() == ""
    assert [request.text() is not None for request in (second, waiting)] == [True, True]
    assert second.tokens == REFERENCE.greedy(second.prompt, 20, ())
    assert waiting.tokens == REFERENCE.greedy(waiting.prompt, 4, ())
    assert (dropped.tokens, first.finish_reason) == ([], "cancelled")
    assert (engine.active, engine.waiting) == (0, 0)


def test_a_text_ends_at_the_end_token_at_a_stop_string_and_at_the_context(tmp_path: Path, engine: Engine) -> None:
    prompt = engine.encode("Hello")
    tokens = REFERENCE.greedy(prompt, 40, ())
    end = tokens[4]
    write_decoder(tmp_path / "out", tmp_path / "model", end_tokens=(END, end))
    with Engine.open(tmp_path / "out", threads=1) as ending:
        events = list(ending.submit(prompt))
    assert [event.id for event in events] == tokens[: tokens.index(end) + 1]
    assert events[-1] == Token(end, "", "stop")
    text = engine.codec.decode(tokens)
    stopped = engine.submit(prompt, greedy(40, stop=(text[5:8], "never")))
    assert stopped.text() == text[:5][: text.find(text[5:8])]
    assert stopped.finish_reason == "stop"
    long = [5] * (CONTEXT - 3)
    full = engine.submit(long)
    full.text()
    assert (len(full.tokens), full.finish_reason) == (3, "length")


def test_seeds(engine: Engine) -> None:
    def drawn(seed: int) -> list[int]:
        options = SamplingOptions(max_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
        requests = [engine.submit(engine.encode("Hello"), options) for _ in range(3)]
        assert len({request.text() for request in requests}) == 1
        return requests[0].tokens

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("options", [greedy(120), SamplingOptions(max_tokens=120, temperature=0.3, seed=5)])
def test_drafted_tokens_change_nothing(folder: Path, engine: Engine, options: SamplingOptions) -> None:
    prompt = engine.encode("the cat sat on the mat the cat sat on the")
    plain = engine.submit(prompt, options)
    plain.text()
    with Engine.open(folder, threads=1, speculate=6) as drafting:
        calls = count_calls(drafting)
        drafted = drafting.submit(prompt, options)
        drafted.text()
    assert drafted.tokens == plain.tokens
    assert len(calls) < 120


def test_drafts_stay_inside_the_context(folder: Path) -> None:
    with Engine.open(folder, threads=1, speculate=64) as drafting:
        request = drafting.submit([5, 6, 7] * ((CONTEXT - 6) // 3))
        request.text()
    assert len(request.prompt) + len(request.tokens) == CONTEXT


def count_calls(engine: Engine) -> list[int]:
    """Grows by one with every call of the model: the number of its tokens."""
    calls: list[int] = []
    run = engine._decoder._run
    engine._decoder._run = lambda first, tokens, kept: (calls.append(tokens.size), run(first, tokens, kept))[1]
    return calls


def test_prompt_lookup_drafts_what_followed_last() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, 3, 5, 9])
    assert lookup.draft(3) == []
    for token in (1, 2):
        lookup.add(token)
    assert lookup.draft(3) == [3, 5, 9], "the latest occurrence, two tokens long"
    lookup.add(3)
    assert lookup.draft(2) == [5, 9]


def test_drafts_are_refused_where_tokens_cannot_be_taken_back(tmp_path: Path) -> None:
    write_decoder(tmp_path / "out", tmp_path / "model", recurrent=True)
    with pytest.raises(CompilerError, match="cannot take tokens back"):
        Engine.open(tmp_path / "out", speculate=4)
    with pytest.raises(CompilerError, match="65 tokens cannot be drafted"):
        Engine.open(tmp_path / "out", speculate=65)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [([], "it is empty"), ([5, VOCABULARY], f"{VOCABULARY} is no token"), ([5] * CONTEXT, f"it has {CONTEXT} tokens")],
)
def test_prompts_that_cannot_be_are_refused(engine: Engine, prompt: list[int], problem: str) -> None:
    with pytest.raises(CompilerError, match=problem):
        engine.submit(prompt)


def test_an_empty_prompt_begins_with_the_beginning_token(engine: Engine) -> None:
    assert engine.encode("") == [BEGIN]
    expected = engine.encode("<s>user: Hi\nassistant: ")
    assert engine.render_chat([{"role": "user", "content": "Hi"}]) == expected


def test_a_failure_is_raised_where_the_text_is_read_and_the_engine_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.open(folder, slots=2, threads=1) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(Decoder, "decode", lambda self, tokens: 1 / 0)
            requests = [engine.submit(engine.encode(text), greedy(5)) for text in ("Hello", "a")]
            for request in requests:
                with pytest.raises(CompilerError, match="ZeroDivisionError"):
                    request.text()
        request = engine.submit(engine.encode("Hello"), greedy(5))
        request.text()
    assert request.tokens == REFERENCE.greedy(request.prompt, 5, ())


def test_a_listener_gets_the_tokens_and_one_that_fails_harms_nobody(engine: Engine) -> None:
    seen: list[object] = []
    done = threading.Event()

    def listen(event: object) -> None:
        seen.append(event)
        if isinstance(event, Token) and event.finish_reason:
            done.set()

    def fail(event: object) -> None:
        raise RuntimeError("gone")

    engine.submit(engine.encode("Hello"), greedy(50), fail)
    request = engine.submit(engine.encode("Hello"), greedy(5), listen)
    assert done.wait(20)
    assert [event.id for event in seen if isinstance(event, Token)] == request.tokens
    assert request.tokens == REFERENCE.greedy(request.prompt, 5, ())


def test_closing_lets_texts_end_in_time_and_cancels_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(folder, slots=1, threads=1)
    soon = engine.submit(engine.encode("Hello"), greedy(5))
    engine.close(grace_seconds=30)
    assert soon.finish_reason == "length"
    with pytest.raises(CompilerError, match="the engine is closed"):
        engine.submit([5])
    with Engine.open(folder, slots=1, threads=1) as engine:
        slow_down(engine, monkeypatch)
        requests = [engine.submit(engine.encode("Hello"), greedy(500)) for _ in range(3)]
        next(iter(requests[0]))
    assert [request.finish_reason for request in requests] == ["cancelled"] * 3
