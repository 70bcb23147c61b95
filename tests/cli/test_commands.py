"""What the commands answer, for people and as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import MODELS, Command

MODEL = f"{MODELS}:classifier"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_compile_prints_the_folder_and_says_the_rest_on_standard_error(run_command: Command, tmp_path: Path) -> None:
    ran = run_command(MODEL, "--backend", "eager")
    assert (ran.code, ran.stdout) == (0, "classifier-eager\n")
    assert "canonicalize" in ran.stderr
    assert "wrote classifier-eager in" in ran.stderr
    assert "\x1b" not in ran.stderr
    report = json.loads((tmp_path / "classifier-eager" / "report.json").read_text())
    assert report["format"] == "regraft report 1"


def test_compile_json_is_the_report_and_quiet_is_quiet(run_command: Command, tmp_path: Path) -> None:
    ran = run_command(MODEL, "--backend", "eager", "-o", "out", "--json")
    assert ran.document["artifact"] == "out"
    assert ran.document["payload"]["worst_cosine"] == pytest.approx(1.0)
    quiet = run_command(MODEL, "--backend", "eager", "-o", "out", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("out\n", "")


def test_a_recipe_makes_the_same_artifact_again(run_command: Command, artifact: Path, tmp_path: Path) -> None:
    ran = run_command("--recipe", artifact / "recipe.toml", "-o", "again", "--json")
    assert ran.code == 0
    again = tomllib.loads((tmp_path / "again" / "recipe.toml").read_text())
    assert again == tomllib.loads((artifact / "recipe.toml").read_text())


def test_run_takes_arrays_and_writes_them(run_command: Command, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((3, 32), np.float32))
    ran = run_command("run", artifact, "--input", "in.npz", "--output", "out.npz", "--json")
    (found,) = ran.document.values()
    assert (found["dtype"], found["shape"]) == ("float32", [3, 5])
    (written,) = np.load(tmp_path / "out.npz").values()
    np.testing.assert_allclose(found["values"], written)


def test_verify_passes_and_names_a_changed_file(run_command: Command, artifact: Path, tmp_path: Path) -> None:
    assert run_command("verify", artifact, "--json").document["passed"] is True
    copy = shutil.copytree(artifact, tmp_path / "copy")
    payload = copy / json.loads((copy / "manifest.json").read_text())["runtime"]["entry"]
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    ran = run_command("verify", copy, "--json")
    assert ran.code == 1
    assert list(ran.document["files"]) == [payload.name]
    assert payload.name in ran.stderr


def test_bench_times_both_sides(run_command: Command, artifact: Path) -> None:
    ran = run_command("bench", artifact, "--against", MODEL, "--rounds", "3", "--size", "batch=2", "--json")
    first, second = ran.document["sides"]
    assert second["name"] == "models.py:classifier in torch"
    assert min(first["latency_seconds"]["median"], second["latency_seconds"]["median"]) > 0
    assert ran.document["shapes"] == {"x": [2, 32]}


def test_inspect_lists_sites_with_names_and_shapes(run_command: Command) -> None:
    document = run_command("inspect", MODEL, "--json").document
    linear = [site for site in document["sites"] if site["kind"] == "linear"]
    assert [site["name"] for site in linear] == ["first", "second", "head"]
    assert linear[0]["inputs"] == ["float32[batch, 32]"]
    assert linear[0]["bytes"] == 4 * (32 * 64 + 64)
    assert document["parameters"] == 32 * 64 + 64 + 64 * 64 + 64 + 2 * 64 + 64 * 5 + 5
    assert document["weight_bytes"] == 4 * document["parameters"]
    text = run_command("inspect", MODEL, "--kind", "norm").stdout
    assert "1 norm site" in text
    assert "linear" not in text.replace("layer_norm", "")


def test_inspect_shows_an_artifact(run_command: Command, artifact: Path) -> None:
    ran = run_command("inspect", artifact)
    assert "backend eager" in ran.stdout
    assert run_command("inspect", artifact, "--json").document["backend"] == "eager"


def test_explain_says_what_each_site_would_become_and_writes_nothing(
    run_command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    graft = EXAMPLES / "03_one_file_graft.py"
    ran = run_command("explain", "truncate-rank:keep=0.5", MODEL, "--plugin", graft, "--json")
    (explained,) = ran.document["passes"]
    sites = {site["site"]: site for site in explained["sites"]}
    assert sites["second"]["refused"] == "rank 32 is no smaller than 64 x 64"
    assert sites["head"]["proposal"] == "rank 2"
    assert sites["head"]["bytes_before"] == 4 * (64 * 5 + 5)
    assert sites["head"]["bytes_after"] == 4 * (64 * 2 + 2 * 5 + 5)
    assert [one["tokens"] for one in sites["head"]["speed"]] == [1, 128, 1024]
    assert all(one["gain"] > 0 for one in sites["head"]["speed"])
    assert "speed" not in sites["second"]
    table = run_command("explain", "truncate-rank:keep=0.5", MODEL, "--plugin", graft).stdout
    assert "speed in onnx_runtime on cpu: of a stand-in alone over that of its site" in table
    untimed = run_command("explain", "truncate-rank:keep=0.5", MODEL, "--plugin", graft, "--no-speed", "--json")
    assert not any("speed" in site for site in untimed.document["passes"][0]["sites"])
    assert list(tmp_path.iterdir()) == []


def test_explain_takes_a_pipeline_of_rewrites(run_command: Command) -> None:
    document = run_command("explain", "fuse", MODEL, "--json").document
    assert {one["make"] for one in document["passes"]} == {"rewrite"}
    assert all(one["nodes_before"] >= one["nodes_after"] for one in document["passes"])


def test_diff_of_a_model_with_itself_and_with_its_artifact(run_command: Command, artifact: Path) -> None:
    assert run_command("diff", MODEL, MODEL, "--json").document == {"same": True, "diff": []}
    assert run_command("diff", artifact, artifact, "--json").document["same"] is True
    rows = run_command("diff", MODEL, artifact, "--json").document["differences"]
    assert "inputs" not in rows
    assert rows["backend"] == {"a": "-", "b": "eager"}


def test_diff_of_two_models_is_a_diff_of_their_text(run_command: Command, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(Path(MODELS).read_text().replace("torch.relu(self.first(x))", "torch.tanh(self.first(x))"))
    lines = run_command("diff", MODEL, f"{other}:classifier", "--json").document["diff"]
    assert [line[0] for line in lines if line[0] != " " and ("relu" in line or "tanh" in line)] == ["-", "+"]


def test_listings(run_command: Command) -> None:
    passes = {one["name"]: one for one in run_command("passes", "--json").document["passes"]}
    assert passes["quantize"]["make"] == "graft"
    assert all(one["summary"] for one in passes.values())
    bits = next(o for o in run_command("passes", "quantize", "--json").document["options"] if o["name"] == "bits")
    assert (bits["type"], bits["default"]) == ("8 | 4 | 2 or text", 8)
    backends = {one["name"] for one in run_command("backends", "--json").document["backends"]}
    assert {"eager", "onnx_runtime"} <= backends
    targets = {one["name"]: one for one in run_command("targets", "--json").document["targets"]}
    assert targets["cpu"]["runs_here"] is True
    assert "onnx_runtime" in targets["cpu"]["backends"]
    assert "stands for: " in run_command("passes", "fuse").stdout


def test_doctor_knows_this_machine(run_command: Command) -> None:
    document = run_command("doctor", "--json").document
    assert document["machine"]["python"] == sys.version.split()[0]
    assert document["packages"]["compiling"]["torch"].startswith("2.")
    assert document["plugins"]["left_out"] == []
    assert "compiler.passes.canonicalize" in document["plugins"]["found"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_commands(shell: str, run_command: Command) -> None:
    script = run_command("completion", shell).stdout
    assert all(name in script for name in ("inspect", "new-plugin", "--max-drop"))


def test_names_cannot_drive_the_terminal(run_command: Command) -> None:
    ran = run_command("inspect", "\x1b[31mred\x07")
    assert ran.code == 1
    assert "\x1b" not in ran.stderr
    assert "\x07" not in ran.stderr
