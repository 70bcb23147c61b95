"""`compile new-plugin`: a project with one pass, its tests and its packaging."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared
from compiler.errors import CompilerError

TEMPLATES = Path(__file__).parent.parent / "plugin_template"
FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "$module.py": "module.py.template",
    "tests/test_$module.py": "test_module.py.template",
}
"""File of the new project -> its template."""


def new_plugin(
    name: Annotated[str, Parameter(help="Name of the pass and of the project, as in prune-rows.")],
    *,
    folder: Annotated[Path | None, Parameter(help="Where to write it; ./NAME if left out.")] = None,
    shared: Shared = SHARED,
) -> Answer:
    """Write a plugin project whose own tests pass at once."""
    from compiler.cli.terminal import line

    target = folder if folder is not None else Path(name)
    _check_name(name)
    doing = f"writing plugin {name}"
    if target.exists() or target.is_symlink():
        raise CompilerError(doing, f"{target} exists", "Give another name, or another place with --folder.")
    if not target.absolute().parent.is_dir():
        raise CompilerError(doing, f"there is no folder {target.absolute().parent}", "Make it first.")
    try:
        files = write_project(name, target)
    except PermissionError as error:
        raise CompilerError(doing, str(error), "Give a place that you may write to with --folder.") from None
    hints = (
        f"Hint: cd {target} && python -m pytest",
        f"Hint: compile passes {name} --plugin {target / files['$module.py']}",
    )
    document = {"name": name, "folder": str(target), "files": sorted(files.values())}
    return Answer(document, (line(str(target)),), tuple(map(line, hints)))


def write_project(name: str, target: Path) -> dict[str, str]:
    """Write the project in one step, and return its files by their name in FILES."""
    import shutil
    import string
    import tempfile

    words = {"name": name, "module": module_name(name), "pass_class": pass_class_name(name)}
    staging = Path(tempfile.mkdtemp(prefix=".regraft-", dir=target.absolute().parent))
    try:
        files = {pattern: string.Template(pattern).substitute(words) for pattern in FILES}
        for pattern, template in FILES.items():
            path = staging / files[pattern]
            path.parent.mkdir(exist_ok=True)
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            path.write_text(string.Template(text).substitute(words), encoding="utf-8")
        staging.chmod(0o755)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return files


def module_name(name: str) -> str:
    """`prune_rows` for prune-rows."""
    return name.replace("-", "_")


def pass_class_name(name: str) -> str:
    """`PruneRows` for prune-rows."""
    return "".join(word.capitalize() for word in name.split("-"))


def _check_name(name: str) -> None:
    import keyword
    from importlib.util import find_spec

    doing = f"naming plugin {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise CompilerError(
            doing, "it is not in kebab case", "Write small letters, digits and dashes, as in prune-rows."
        )
    module = module_name(name)
    if keyword.iskeyword(module) or find_spec(module) is not None:
        raise CompilerError(doing, f"Python already has a module {module!r}", f"Call it my-{name}, for instance.")
