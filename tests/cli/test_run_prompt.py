"""`compile run OUT --prompt`: what goes where, and what is refused in one line."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import pytest

from compiler.runtime.__main__ import main as plain_main
from tests.cli.conftest import Command, start
from tests.runtime.small_decoder import CONTEXT, SmallDecoder, write_decoder

PROMPT = "Hello there"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose texts never end by themselves."""
    base = tmp_path_factory.mktemp("decoder")
    write_decoder(base / "out", base / "model", end_tokens=())
    return base / "out"


def test_the_text_goes_to_standard_output_and_the_speed_to_standard_error(run_command: Command, decoder: Path) -> None:
    ran = run_command("run", decoder, "--prompt", PROMPT, "--max-new-tokens", "12")
    document = run_command("run", decoder, "--prompt", PROMPT, "--max-tokens", "12", "--json").document
    (text,) = document["texts"]
    assert (ran.code, ran.stdout) == (0, text["text"] + "\n")
    assert "tokens/s prefill, first token after" in ran.stderr
    assert f"({text['prompt_tokens']} tokens of prompt, 12 new)" in ran.stderr
    assert (len(text["tokens"]), text["finish_reason"]) == (12, "length")
    assert min(document["prefill_tokens_per_second"], document["decode_tokens_per_second"]) > 0
    assert text["seconds_to_first_token"] > 0


def test_the_chat_template_is_applied_unless_raw(run_command: Command, decoder: Path) -> None:
    ran = run_command("run", decoder, "--prompt", "hi", "--raw", "--max-tokens", "5", "--json")
    assert ran.document["texts"][0]["prompt_tokens"] == len("hi")
    templated = run_command("run", decoder, "--prompt", "hi", "--system", "s", "--max-tokens", "5", "--json")
    assert templated.document["prompt_tokens"] == len("#system: s\n#user: hi\nassistant: ")
    assert len(ran.document["texts"][0]["tokens"]) == 5


def test_several_prompts_and_standard_input(
    run_command: Command, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("b"))
    ran = run_command("run", decoder, "--prompt", "a", "--prompt", "-", "--raw", "--max-tokens", "6", "--json")
    reference = SmallDecoder()
    # `a` and `b` follow the two special tokens, the space and the newline.
    assert [text["tokens"] for text in ran.document["texts"]] == [reference.greedy([4 + i], 6, ()) for i in (0, 1)]
    shown = run_command("run", decoder, "--prompt", "a", "--prompt", "b", "--raw", "--max-tokens", "6")
    assert shown.stdout == "\n".join(text["text"] + "\n" for text in ran.document["texts"])


def test_seeds_stop_strings_and_drafts(run_command: Command, decoder: Path) -> None:
    def texts(*options: str) -> list[str]:
        ran = run_command("run", decoder, "--prompt", PROMPT, "--max-tokens", "40", "--json", *options)
        return [text["text"] for text in ran.document["texts"]]

    drawn = ("--temperature", "2", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.001", "--seed")
    assert texts(*drawn, "3") == texts(*drawn, "3") != texts(*drawn, "4")
    (whole,) = texts()
    assert texts("--speculate", "5") == [whole]
    assert texts("--stop", "never", "--stop", whole[10:13]) == [whole[: whole.index(whole[10:13])]]
    assert texts("--repetition-penalty", "5") != [whole]


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--prompt", "a", "--text", "b"], 2, "both --text and --prompt are given"),
        (["--prompt", "a", "-o", "x.npz"], 2, "--output is for arrays"),
        (["--prompt", "-", "--prompt", "-"], 2, "standard input is asked for twice"),
        (["--text", "a", "--seed", "1"], 2, "options of text generation are given without --prompt"),
        ([], 2, "none of --text, --input and --prompt is given"),
        (["--text", "a"], 1, "it continues prompts"),
        (["--prompt", "a", "--top-p", "2"], 1, "top_p is 2.0"),
        (["--prompt", "a", "--max-tokens", "0"], 1, "max_tokens is 0"),
        (["--prompt", "a", "--raw", "--system", "b"], 1, "a plain prompt has no system message"),
        (["--prompt", "a" * CONTEXT], 1, f"and the context has {CONTEXT}"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused(
    run_command: Command, decoder: Path, arguments: list[str], code: int, problem: str
) -> None:
    ran = run_command("run", decoder, *arguments)
    assert (ran.code, ran.stdout) == (code, "")
    assert problem in ran.stderr.splitlines()[0]
    assert ran.stderr.splitlines()[1].startswith("Hint: ")


def test_an_artifact_that_does_not_generate_is_refused(run_command: Command, artifact: Path) -> None:
    ran = run_command("run", artifact, "--prompt", "a")
    assert (ran.code, ran.stdout) == (1, "")
    assert "it writes no text" in ran.stderr


def test_an_interrupt_ends_it_cleanly(decoder: Path, tmp_path: Path) -> None:
    prompts = ["--prompt", "a"] * 200
    process = start("run", decoder, *prompts, "--max-tokens", "500", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted; nothing was left behind\n")


def test_the_plain_command_generates_too(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain_main(["run", str(decoder), "--prompt", "a", "--raw", "--max-tokens", "6", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["texts"][0]["tokens"] == SmallDecoder().greedy([4], 6, ())
    assert plain_main(["run", str(decoder), "--prompt", "a", "--raw", "--max-tokens", "6"]) == 0
    captured = capsys.readouterr()
    assert captured.out == document["texts"][0]["text"] + "\n"
    assert "tokens/s" in captured.err
