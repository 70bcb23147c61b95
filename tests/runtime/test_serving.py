"""`compile serve` as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from serving_harness import HELLO, MODEL, Expected, RunningServer, serving
from small_decoder import SmallDecoder, write_decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a decoder whose texts never end by themselves."""
    base = tmp_path_factory.mktemp("serving")
    write_decoder(base / "small", base / "model", end_tokens=())
    return base / "small"


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningServer]:
    with serving(folder) as server:
        yield server


@pytest.fixture
def client(running: RunningServer) -> Iterator[OpenAI]:
    with running.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(running: RunningServer) -> Expected:
    return Expected(running.engine.codec)


def test_a_chat_is_answered_whole(client: OpenAI, expected: Expected, running: RunningServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=24)
    (choice,) = answer.choices
    assert choice.message.content == expected.chat(HELLO, 24)
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "length", 0)
    prompt = len(running.engine.render_chat(HELLO))
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt, "completion_tokens": 24, "total_tokens": prompt + 24,
    }  # fmt: skip
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer._request_id == answer.id


def test_a_chat_is_streamed_piece_by_piece(client: OpenAI, expected: Expected) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, max_completion_tokens=24, stream=True
    ) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == expected.chat(HELLO, 24)
    assert len(chunks) > 20
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_the_clients_own_stream_reader_understands_it(client: OpenAI, expected: Expected) -> None:
    text = expected.chat(HELLO, 12)
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0, stop=text[8:]) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == text[:8]
    assert answer.choices[0].finish_reason == "stop"


def test_usage_comes_last_where_it_is_asked_for(client: OpenAI) -> None:
    with client.completions.create(
        model=MODEL, prompt="abc", max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *others, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (3, 5, 8)
    assert all(chunk.usage is None for chunk in others)


def test_a_completion_takes_text_or_token_ids(client: OpenAI, expected: Expected, running: RunningServer) -> None:
    prompt = "Once upon a time"
    ids = running.engine.encode(prompt)
    texts = []
    for given in (prompt, [prompt], ids, [ids]):
        answer = client.completions.create(model=MODEL, prompt=given, temperature=0)
        texts.append(answer.choices[0].text)
        assert answer.choices[0].finish_reason == "length"
    assert texts == [expected.completion(prompt, 16)] * 4
    with client.completions.create(model=MODEL, prompt=prompt, temperature=0, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == texts[0]


def test_content_may_come_in_parts_and_earlier_answers_may_be_sent_back(client: OpenAI, expected: Expected) -> None:
    first = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=8)
    said = first.choices[0].message
    parts = [{"type": "text", "text": "and "}, {"type": "text", "text": "then?"}]
    messages: list[Any] = [{"role": "developer", "content": "x"}, *HELLO, said, {"role": "user", "content": parts}]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8)
    plain = [
        {"role": "system", "content": "x"},
        *HELLO,
        {"role": "assistant", "content": said.content or ""},
        {"role": "user", "content": "and then?"},
    ]
    assert second.choices[0].message.content == expected.chat(plain, 8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: OpenAI, expected: Expected, stream: bool) -> None:
    text = expected.completion("stop here", 30)
    stop = text[10:13]
    asked: dict[str, Any] = {"model": MODEL, "prompt": "stop here", "temperature": 0, "max_tokens": 30, "stop": [stop]}
    if stream:
        with client.completions.create(stream=True, **asked) as chunks:
            choices = [chunk.choices[0] for chunk in chunks]
    else:
        choices = client.completions.create(**asked).choices
    assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_an_end_token_ends_the_text(folder: Path, expected: Expected, tmp_path: Path) -> None:
    prompt = expected.codec.encode("to the end")
    end = SmallDecoder().greedy(prompt, 6, end=())[-1]
    write_decoder(tmp_path / "small", tmp_path / "model", end_tokens=(end,))
    with serving(tmp_path / "small") as server, server.client() as client:
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=100)
    ids = SmallDecoder().greedy(prompt, 100, end=(end,))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == expected.codec.decode(ids[:-1])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(ids)


def test_a_seed_gives_the_same_text_again(client: OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="dice", max_tokens=40, seed=seed, temperature=1.5, top_p=0.9, extra_body={"top_k": 50}
        )
        return str(answer.choices[0].text)

    texts = [text(seed) for seed in (1, 1, 2, -1, -1)]
    assert texts[0] == texts[1]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 3


def test_penalties_reach_the_sampler(client: OpenAI, running: RunningServer) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "aaaa", "temperature": 0, "max_tokens": 40}
    plain = client.completions.create(**asked).choices[0].text
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 10.0}}):
        assert client.completions.create(**asked, **penalty).choices[0].text != plain
    once = client.completions.create(**asked, extra_body={"repetition_penalty": 100.0}).choices[0].text
    characters = once.replace("\N{REPLACEMENT CHARACTER}", "")
    assert len(set(characters)) == len(characters)  # none comes twice as long as there are others


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "regraft"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here; this server has 'small'"):
        client.models.retrieve("gpt-4")


def test_mistakes_are_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is 200") as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=200)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="context of 600") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "long " * 200}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found"


def test_text_goes_to_the_end_of_the_context(client: OpenAI, running: RunningServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, seed=1)
    assert answer.usage is not None
    assert answer.usage.total_tokens == running.engine.context_length
    assert answer.choices[0].finish_reason == "length"


def test_sixteen_streams_at_once_say_what_each_says_alone(
    running: RunningServer, client: OpenAI, expected: Expected
) -> None:
    prompts = [f"{chr(97 + index) * (1 + index)} number" for index in range(16)]
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 100}
    alone = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in prompts]
    assert len(set(alone)) == 16
    assert alone[0].startswith(expected.completion(prompts[0], 20))

    async def text(client: AsyncOpenAI, prompt: str) -> str:
        async with await client.completions.create(prompt=prompt, stream=True, **asked) as stream:
            return "".join([chunk.choices[0].text async for chunk in stream])

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=running.server.url, api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(text(client, prompt) for prompt in prompts)))

    assert asyncio.run(together()) == alone
