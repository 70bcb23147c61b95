from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.exported_program_file import ExportedProgramFile
from compiler.frontends.pt2_safety import _is_arithmetic
from compiler.program import Program


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"scaled": self.linear(x) * scale + self.shift + torch.tensor([1.0, 2.0, 3.0]), "plain": x + 1}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    dims = {"x": {0: Dim.AUTO}, "scale": None}
    exported = torch.export.export(model, (torch.randn(2, 4),), {"scale": torch.randn(3)}, dynamic_shapes=dims)
    torch.export.save(exported, path)
    return path


def load(path: Path, *, allow_pickle: bool = False) -> Program:
    return load_model(str(path), LoadOptions(allow_pickle=allow_pickle), [ExportedProgramFile])


def test_names_dims_and_numbers(saved: Path, model: Model):
    program = load(saved)
    assert [str(spec) for spec in program.inputs] == ["x: float32[batch, 4]", "scale: float32[3]"]
    assert [spec.name for spec in program.outputs] == ["scaled", "plain"]
    assert {"linear.weight", "linear.bias", "shift"} <= set(program.weights())
    x, scale = torch.randn(5, 4), torch.randn(3)
    expected = model(x, scale=scale)
    for spec, found in zip(program.outputs, program.run(x, scale), strict=True):
        torch.testing.assert_close(found, expected[spec.name])


def rewritten(saved: Path, folder: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """A copy of the archive with files as `edit(name, content)` leaves them; torch wants them uncompressed."""
    path = folder / "model.pt2"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, edit(entry.filename.split("/", 1)[1], source.read(entry)))
    return path


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def trapped(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Trap(path)}, buffer)
    return buffer.getvalue()


def refused(path: Path, sprung: Path) -> str:
    with pytest.raises(CompilerError) as caught:
        load(path)
    assert not sprung.exists(), "reading it ran code"
    assert "--allow-pickle" in caught.value.hint
    assert caught.value.problem.startswith("reading it could run code: ")
    return caught.value.problem


def test_pickled_example_inputs(saved: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"
    path = rewritten(saved, tmp_path, lambda name, old: trapped(sprung) if "sample_inputs" in name else old)
    assert "data/sample_inputs/model.pt is a pickle of more than tensors" in refused(path, sprung)


def test_pickled_weights(saved: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"

    def edit(name: str, old: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return old.replace(b'"use_pickle": false', b'"use_pickle": true')
        return trapped(sprung) if name.endswith("weight_0") else old

    assert "is pickled" in refused(rewritten(saved, tmp_path, edit), sprung)


def test_custom_objects(saved: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"

    def edit(name: str, old: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            return old.replace(b'"tensor_0"', b'"opaque_obj_0"')
        return old

    path = rewritten(saved, tmp_path, edit)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Trap(sprung)))
    assert "opaque_obj_0" in refused(path, sprung) or "custom object" in refused(path, sprung)


def test_a_whole_state_dict_in_the_old_form(saved: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"
    path = rewritten(saved, tmp_path, lambda name, old: old)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/weights/model.pt", trapped(sprung))
    assert "data/weights/model.pt is a pickle" in refused(path, sprung)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.load_library",
        "_operator.methodcaller",
        "torch.ops.aten.__class__",
        "torch.ops.aten.add.__init__",
        "#x",
    ],
)
def test_operators_that_are_not_operators(saved: Path, tmp_path: Path, target: str):
    def edit(name: str, old: bytes) -> bytes:
        return old.replace(b"torch.ops.aten.linear.default", target.encode()) if name.startswith("models/") else old

    assert f"it calls {target!r}" in refused(rewritten(saved, tmp_path, edit), tmp_path / "sprung")


def test_a_shape_that_is_code(saved: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"
    code = f"__import__('pathlib').Path('{sprung}').touch()"

    def edit(name: str, old: bytes) -> bytes:
        if not name.startswith("models/"):
            return old
        model = json.loads(old)
        values = model["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = code
        return json.dumps(model).encode()

    path = rewritten(saved, tmp_path, edit)
    assert "it has the shape" in refused(path, sprung)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "2*Symbol('s0', integer=True) + 1",
        "FloorDiv(Symbol('s0'), 2)",
        "Max(1, Mul(Integer(2), Symbol('s1')))",
        "s0 >= 2",
        "7",
    ],
)
def test_arithmetic_is_arithmetic(text: str):
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "Symbol('s0').__class__",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "Symbol('a b')",
        "FloorDiv('s0', 2)",
        "sympify(Symbol('x'))",
        "eval('1')",
        "f'{1}'",
        "1 if 2 else 3",
        "s0[0]",
        "",
        "(" * 500,
    ],
)
def test_code_is_not_arithmetic(text: str):
    assert not _is_arithmetic(text)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04"])
def test_what_is_no_archive(tmp_path: Path, content: bytes):
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(CompilerError, match=r"it is truncated, damaged or no \.pt2 archive"):
        load(tmp_path / "model.pt2")


def test_a_truncated_archive(saved: Path, tmp_path: Path):
    (tmp_path / "model.pt2").write_bytes(saved.read_bytes()[:-900])
    with pytest.raises(CompilerError, match="it is truncated"):
        load(tmp_path / "model.pt2")


def test_a_model_that_another_torch_wrote(saved: Path, tmp_path: Path):
    path = rewritten(saved, tmp_path, lambda name, old: b"999" if name == "archive_version" else old)
    with pytest.raises(CompilerError, match=r"torch\.export cannot read it") as caught:
        load(path)
    assert torch.__version__ in caught.value.hint


def test_no_example_inputs(saved: Path, tmp_path: Path):
    path = rewritten(saved, tmp_path, lambda name, old: b"" if "sample_inputs" in name else old)
    with pytest.raises(CompilerError, match="it holds no example inputs"):
        load(path)
