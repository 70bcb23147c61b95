"""The rules of the layout, checked by machine: who imports whom, what stays light, and that the wheel holds it all."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE, PASSES, BACKENDS, PLUGINS = (ROOT / name for name in ("compiler", "passes", "backends", "plugins"))
LINE_LIMIT = 500
VAGUE_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "misc"}
HEAVY = {"transformers", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "tvm", "triton", "gguf"}
"""Imported only inside the function that needs them."""

ALLOWED_HEAVY = {"compiler/runtime/onnxruntime_engine.py": {"onnxruntime"}, "backends/onnx_runtime/": {"onnx_ir"}}
"""By file or folder: the engine's module is itself imported only where an artifact asks for it; onnx_ir is what that
backend writes, and is quick to import.
"""

NEEDS_NO_TORCH = (
    "compiler.cli", "compiler.errors", "compiler.target", "compiler.hookspecs", "compiler.registry", "compiler.recipe",
    "compiler.backend", "compiler.artifact", "compiler.compile_model", "compiler.runtime.session",
    "compiler.runtime.verify", "compiler.runtime.bench", "compiler.runtime.__main__",
    "compiler.runtime.serving.server",
)  # fmt: skip
PARTS = ("compiler.passes.", "compiler.backends.", "compiler.plugins.")


def python_files(*folders: Path) -> list[Path]:
    """Every Python file below the folders."""
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def named(path: Path) -> str:
    """The path relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; with `at_import` only those that importing the file itself needs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _outside_functions(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _outside_functions(child)


@pytest.mark.parametrize("path", python_files(CORE), ids=named)
def test_the_core_names_no_pass_backend_or_plugin(path: Path) -> None:
    assert [name for name in imports(path) if name.startswith(PARTS)] == []


@pytest.mark.parametrize("path", python_files(PASSES, BACKENDS, PLUGINS), ids=named)
def test_parts_import_the_core_and_their_own_folder_only(path: Path) -> None:
    """A backend or a family of passes may be a folder; its files may import each other."""
    folder, *rest = path.relative_to(ROOT).parts
    own = f"compiler.{folder}.{rest[0].removesuffix('.py')}"
    foreign = [name for name in imports(path) if name.startswith(PARTS) and not f"{name}.".startswith(f"{own}.")]
    assert foreign == []


EVERYWHERE = python_files(CORE, PASSES, BACKENDS, PLUGINS, ROOT / "tests", ROOT / "examples")


@pytest.mark.parametrize("path", EVERYWHERE, ids=named)
def test_the_folders_are_imported_below_compiler(path: Path) -> None:
    assert [name for name in imports(path) if name.split(".")[0] in ("passes", "backends", "plugins")] == []


@pytest.mark.parametrize("path", python_files(CORE / "runtime"), ids=named)
def test_the_runtime_imports_neither_torch_nor_the_compiler(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in {"torch", "transformers", "onnx", "rich", "cyclopts", "pluggy"}, name
        if name.startswith("compiler."):
            assert name.startswith(("compiler.runtime", "compiler.errors")), name


@pytest.mark.parametrize("path", python_files(CORE, PASSES, BACKENDS, PLUGINS), ids=named)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path, at_import=True)} & HEAVY
    allowed = {name for place, names in ALLOWED_HEAVY.items() if named(path).startswith(place) for name in names}
    assert found <= allowed


@pytest.mark.parametrize("path", python_files(CORE, PASSES, BACKENDS, PLUGINS, ROOT / "examples"), ids=named)
def test_files_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINE_LIMIT
    assert ast.get_docstring(ast.parse(text))
    assert path.stem not in VAGUE_NAMES
    assert not any(part in VAGUE_NAMES for part in path.relative_to(ROOT).parts)


def test_the_checkout_has_no_second_passes() -> None:
    assert not (CORE / "passes.py").exists()
    assert not any((CORE / name).exists() for name in ("passes", "backends", "plugins"))


@pytest.mark.parametrize("module", NEEDS_NO_TORCH)
def test_these_modules_load_no_torch(module: str) -> None:
    code = f"import sys, importlib; importlib.import_module({module!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_users_own_passes_folder_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("raise RuntimeError('the wrong passes')", encoding="utf-8")
    found = python("import compiler.passes; print(compiler.passes.__file__)", tmp_path, tmp_path, ROOT)
    assert Path(found.strip()) == PASSES / "__init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("regraft-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that it is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


@pytest.mark.slow
class TestWheel:
    """Used away from the checkout."""

    def test_it_holds_every_file_below_compiler(self, wheel: Path) -> None:
        held = set(zipfile.ZipFile(wheel).namelist())
        top = {name.split("/")[0] for name in held if not name.split("/")[0].endswith(".dist-info")}
        assert top == {"compiler"}
        files = python_files(CORE, PASSES, BACKENDS, PLUGINS)
        wanted = {named(path) if path.is_relative_to(CORE) else f"compiler/{named(path)}" for path in files}
        wanted |= {"compiler/evidence/sentences.txt", "compiler/report/report.html.j2", "compiler/py.typed"}
        wanted |= {f"compiler/cli/plugin_template/{path.name}" for path in (CORE / "cli/plugin_template").iterdir()}
        assert wanted - held == set()

    def test_its_passes_and_backends_are_its_own(self, site: Path, tmp_path: Path) -> None:
        code = "import compiler.passes.canonicalize as a, compiler.backends as b, compiler.plugins as c; "
        found = python(code + "print(a.__file__, b.__file__, c.__file__, sep='\\n')", tmp_path, site)
        assert [Path(line).is_relative_to(site) for line in found.splitlines()] == [True, True, True]

    def test_it_compiles_and_verifies(self, site: Path, tmp_path: Path) -> None:
        model = f"{ROOT / 'examples' / '02_your_own_model.py'}:digits"
        command = "from compiler.cli import main; raise SystemExit(main({!r}))"
        compiled = python(command.format([model, "-o", "digits", "--quiet"]), tmp_path, site)
        assert compiled == "digits\n"
        assert '"passed": true' in python(command.format(["verify", "digits", "--json"]), tmp_path, site)


def pip(*arguments: str) -> None:
    """Run pip, offline and without touching this environment."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def python(code: str, folder: Path, *path: Path) -> str:
    """What Python prints for `code` in another folder, where `path` comes before the editable install."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
