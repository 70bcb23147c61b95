"""What the documents say is true: the pass in the README works, and the files they point to exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from compiler.cli import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
MODEL = f"{ROOT / 'examples' / '02_your_own_model.py'}:digits"


@pytest.mark.slow
def test_the_pass_in_the_readme_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    plugin = tmp_path / "readme_pass.py"
    plugin.write_text(code, encoding="utf-8")
    passes = "canonicalize,drop-small-weights:below=0.001"
    arguments = [MODEL, "--plugin", str(plugin), "--passes", passes, "-o", str(tmp_path / "out"), "--json"]
    assert main([*arguments, "--backend", "eager"]) == 0
    graft = json.loads(capsys.readouterr().out)["passes"][-1]
    assert graft["states"] == {"grafted": 2}
    assert 0.99 < graft["evidence"]["fidelity"]["mean_cosine"] < 1


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_files_that_the_documents_name_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(
            r"`((?:compiler|passes|backends|plugins|tests|docs|examples)/[\w/.-]+)`", path.read_text()
        ):
            assert "your_" in name or (ROOT / name).exists(), f"{path.name}: {name}"


def test_commands_that_the_readme_shows_exist() -> None:
    from compiler.cli.app import build_app

    shown = set(re.findall(r"`compile ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown <= set(build_app())
