"""Every example runs, and a third party's graft in one file is measured, budgeted and lowered like a built-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compiler.cli import main
from compiler.mixers import MixerOptions, MixerSizes
from compiler.registry import Registry

EXAMPLES = Path(__file__).parent.parent / "examples"
OWN_MODEL = f"{EXAMPLES / '02_your_own_model.py'}:digits"
TINY_LLAMA = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    return model, {"input_ids": torch.randint(0, 99, (2, 12))}
"""
ONE_FILE_GRAFT = EXAMPLES / "03_one_file_graft.py"
ONE_FILE_MIXER = EXAMPLES / "04_one_file_mixer.py"


def compile_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    """Run the command in this process and return its one document."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_every_example_is_numbered_and_tested_here() -> None:
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert scripts == [
        "01_compile_from_python.py", "02_your_own_model.py", "03_one_file_graft.py", "04_one_file_mixer.py",
    ]  # fmt: skip


@pytest.mark.slow
def test_compiling_from_python(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "01_compile_from_python.py"), str(tmp_path / "digits")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=EXAMPLES.parent)
    assert done.stdout.splitlines()[-1] == "{'output': (3, 10)}"
    assert (tmp_path / "digits" / "manifest.json").is_file()


@pytest.mark.slow
def test_your_own_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = compile_json(capsys, OWN_MODEL, "-o", tmp_path / "digits")
    assert report["payload"]["mean_cosine"] > 0.9999
    assert "BatchNormalization" not in report["kernels"]


class TestOneFileGraft:
    def test_it_is_one_small_file(self) -> None:
        assert len(ONE_FILE_GRAFT.read_text(encoding="utf-8").splitlines()) <= 60

    @pytest.mark.slow
    def test_it_is_measured_and_lowered(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        passes = "canonicalize,fuse,truncate-rank:keep=0.3"
        report = compile_json(
            capsys, OWN_MODEL, "--plugin", ONE_FILE_GRAFT, "--passes", passes, "-o", tmp_path / "narrow"
        )
        graft = report["passes"][-1]
        assert graft["name"] == "truncate-rank"
        assert graft["states"] == {"grafted": 2}
        assert 0 < graft["evidence"]["fidelity"]["mean_cosine"] < 1
        assert graft["evidence"]["weight_bytes"] < 0.5 * report["before"]["weight_bytes"]
        lowered, program = report["payload"], graft["evidence"]["fidelity"]
        assert lowered["mean_cosine"] == pytest.approx(program["mean_cosine"], abs=1e-4)
        assert main(["verify", str(tmp_path / "narrow"), "--quiet"]) == 0

    @pytest.mark.slow
    def test_it_is_held_by_a_budget(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        passes = "canonicalize,fuse,truncate-rank:keep=0.3"
        report = compile_json(
            capsys, OWN_MODEL, "--plugin", ONE_FILE_GRAFT, "--passes", passes, "--max-drop", "0.0001",
            "--backend", "eager", "-o", tmp_path / "held",
        )  # fmt: skip
        graft = report["passes"][-1]
        assert graft["evidence"]["fidelity"]["drop"] <= 0.0001
        assert graft["states"].get("returned", 0) + graft["states"].get("softened", 0) > 0
        assert "given back" in graft["notes"][0]


class TestOneFileMixer:
    def test_it_is_one_small_file(self) -> None:
        assert len(ONE_FILE_MIXER.read_text(encoding="utf-8").splitlines()) <= 60

    def test_its_numbers_are_those_of_the_formula(self) -> None:
        (mixer_class,) = Registry([ONE_FILE_MIXER], built_in=False, entry_points=False).mixers().values()
        mixer = mixer_class(MixerSizes(6, 2, 1, 3, 4), MixerOptions()).double()
        generator = torch.Generator().manual_seed(0)
        hidden, query, key, value = (
            torch.randn(1, *shape, dtype=torch.float64, generator=generator)
            for shape in ((7, 6), (2, 7, 3), (1, 7, 3), (1, 7, 4))
        )
        with torch.no_grad():
            found = mixer.read(hidden, query, mixer.write(hidden, key, value), torch.arange(7)[None])
        state = torch.zeros(3, 4, dtype=torch.float64)
        for token in range(7):
            kept = 0.9 + 0.1 / (1 + torch.exp(-key[0, 0, token] - 3.0))
            state = kept[:, None] * state + (1 - kept)[:, None] * value[0, 0, token]
            for head in range(2):
                torch.testing.assert_close(found[0, head, token], query[0, head, token].softmax(0) @ state)

    @pytest.mark.slow
    def test_it_stands_in_for_attention(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "tiny.py").write_text(TINY_LLAMA, encoding="utf-8")
        passes = "linear-attention:kind=hgrn2:window=4:layers=every-2nd"
        report = compile_json(
            capsys, f"{tmp_path / 'tiny.py'}:tiny", "--plugin", ONE_FILE_MIXER, "--passes", passes,
            "--backend", "eager", "-o", tmp_path / "mixed",
        )  # fmt: skip
        graft = report["passes"][-1]
        assert (graft["name"], graft["states"]) == ("linear-attention", {"grafted": 1, "refused": 1})
        added = 16 + 32 * 4 + 4 + 4  # the mixer's bias; the weight, the bias and the slope of its share
        assert graft["evidence"]["weight_bytes"] == report["before"]["weight_bytes"] + 4 * added


def test_the_demo_script_is_valid_shell() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert subprocess.run([shell, "-n", str(EXAMPLES / "demo.sh")], check=False).returncode == 0
