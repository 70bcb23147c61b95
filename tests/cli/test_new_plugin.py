"""`compile new-plugin` writes a project whose own tests pass at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CHECKOUT, Command


@pytest.mark.slow
def test_the_new_projects_own_tests_pass_and_it_installs(run_command: Command, tmp_path: Path) -> None:
    ran = run_command("new-plugin", "prune-rows", "--json")
    assert ran.document["files"] == ["README.md", "prune_rows.py", "pyproject.toml", "tests/test_prune_rows.py"]
    project = tmp_path / "prune-rows"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tested = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
    assert "5 passed" in tested.stdout

    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*install, str(project)], check=True, capture_output=True)
    environment["PYTHONPATH"] = f"{site}{os.pathsep}{CHECKOUT}"
    listed = subprocess.run(
        [sys.executable, "-m", "compiler.cli", "passes", "prune-rows"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert "share of each row's weights" in listed.stdout


def test_the_new_project_is_formatted_and_clean(run_command: Command, tmp_path: Path) -> None:
    run_command("new-plugin", "a1-b2")
    for check in (["format", "--check"], ["check", "--ignore", "I001"]):
        command = [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length", "120", str(tmp_path / "a1-b2")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Foo", "1st", "a_b", "a--b", "json", "class", "", "../up"])
def test_names_that_cannot_be(name: str, run_command: Command, tmp_path: Path) -> None:
    ran = run_command("new-plugin", name)
    assert ran.code == 1
    assert "Hint: " in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run_command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert run_command("new-plugin", "mine").code == 1
    assert run_command("new-plugin", "mine", "--folder", "no/such/place").code == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
