"""Every hook is documented by one sentence, implemented by an installed third-party plugin, and really called."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler import hookspecs
from tests.outside_plugin.installed import PROJECT, InstalledPlugin

HOOKS: dict[str, Callable[..., Any]] = {
    name: value
    for name, value in vars(hookspecs).items()
    if inspect.isfunction(value) and hasattr(value, f"{hookspecs.PROJECT}_spec")
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> InstalledPlugin:
    """The outside plugin, installed once."""
    return InstalledPlugin.install(tmp_path_factory.mktemp("outside"))


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_typed_and_says_what_it_is_for_in_one_sentence(name: str) -> None:
    text = inspect.cleandoc(HOOKS[name].__doc__ or "")
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 120
    signature = inspect.signature(HOOKS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())


@pytest.mark.slow
def test_every_hook_of_an_installed_plugin_is_called(plugin: InstalledPlugin, tmp_path: Path) -> None:
    done = plugin.compile("scaled:4", "--backend", "outside-text", "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    greeted = plugin.compile("outside-greet", "Ada", cwd=tmp_path)
    assert (greeted.returncode, greeted.stdout) == (0, "hello Ada\n")

    calls = plugin.calls()
    assert {call.split()[0] for call in calls} == set(HOOKS)
    told = [call for call in calls if call.split()[0] in ("before_pass", "after_pass", "artifact_built")]
    assert told[:2] == ["before_pass canonicalize", told[1]]
    assert told[-3:] == ["before_pass drop-multiply-by-one", told[-2], "artifact_built True"]

    report = json.loads(done.stdout)
    assert [one["name"] for one in report["passes"]] == ["canonicalize", "drop-multiply-by-one"]
    assert report["passes"][-1]["evidence"]["probes"] == {"finite-weights": 1.0}
    assert "aten.mul" not in (tmp_path / "out" / "program.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_installed_plugin_is_listed(plugin: InstalledPlugin, tmp_path: Path) -> None:
    listed = json.loads(plugin.compile("passes", "--json", cwd=tmp_path).stdout)
    assert "drop-multiply-by-one" in [one["name"] for one in listed["passes"]]
    assert listed["pipelines"]["outside-tidy"] == "canonicalize,drop-multiply-by-one"
    doctor = json.loads(plugin.compile("doctor", "--json", cwd=tmp_path).stdout)
    assert "outside" in doctor["plugins"]["found"]
    assert "outside-greet" in doctor["plugins"]["commands"]


@pytest.mark.slow
def test_the_plugins_own_tests_pass(plugin: InstalledPlugin, tmp_path: Path) -> None:
    own = PROJECT / "own_tests" / "check_outside.py"
    done = plugin.python("-m", "pytest", "-q", "--rootdir", str(tmp_path), str(own), cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_plugin_that_fails_to_import_is_one_warning_line(plugin: InstalledPlugin, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "broken-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[regraft]\nbroken = broken_plugin\n", encoding="utf-8")
    (site / "broken_plugin.py").write_text("import does_not_exist\n", encoding="utf-8")
    environment = {**plugin.environment, "PYTHONPATH": f"{site}:{plugin.environment['PYTHONPATH']}"}
    done = InstalledPlugin(site, tmp_path / "log", environment).compile("passes", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["passes"]
    warnings = [line for line in done.stderr.splitlines() if "broken" in line]
    assert len(warnings) == 1
    assert "No module named 'does_not_exist'" in warnings[0]
    assert "Traceback" not in done.stderr


def test_hook_names_are_those_of_the_design() -> None:
    assert typing.cast(set[str], set(HOOKS)) == {
        "register_passes", "register_backends", "register_frontends", "register_pipelines", "register_probes",
        "register_mixers", "register_formats",
        "add_commands", "before_pass", "after_pass", "artifact_built",
    }  # fmt: skip
