from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.pickle_file import PickleFile


class Trap:
    """Leaves a file where it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def load(path: Path, *inputs: str, allow_pickle: bool = False):
    return load_model(str(path), LoadOptions(inputs, allow_pickle), [PickleFile])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str):
    sprung = tmp_path / "sprung"
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CompilerError, match="it is a pickle") as caught:
        load(path)
    assert "--allow-pickle" in caught.value.hint
    assert not sprung.exists()


def test_a_whole_module_with_leave(tmp_path: Path):
    module = torch.nn.Linear(4, 3)
    torch.save(module, tmp_path / "model.pt")
    program = load(tmp_path / "model.pt", "input=float32[batch,4]", allow_pickle=True)
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.run(x)[0], module(x))


def test_weights_alone_hold_no_model(tmp_path: Path):
    torch.save(torch.nn.Linear(4, 3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CompilerError, match="it holds OrderedDict, not a module") as caught:
        load(tmp_path / "model.pt", allow_pickle=True)
    assert "file.py:factory" in caught.value.hint


def test_a_damaged_pickle(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04 not a pickle")
    with pytest.raises(CompilerError, match="it cannot be unpickled"):
        load(tmp_path / "model.pt", allow_pickle=True)
