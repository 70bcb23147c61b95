"""What ONNX Runtime is told when it opens a decoder, by the kind of its cache."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from small_decoder import write_decoder

from compiler.runtime import onnxruntime_engine
from compiler.runtime.manifest import Manifest, read_manifest
from compiler.runtime.onnxruntime_engine import TILED_ATTENTION_OFF, open_payload


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of a decoder whose cache is float32."""
    base = tmp_path_factory.mktemp("cache")
    write_decoder(base / "out", base / "model", recurrent=False)
    return read_manifest(base / "out")


def told(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The setting while the session was made."""
    found = []
    monkeypatch.setattr(
        onnxruntime_engine, "open_onnx", lambda *_, **__: found.append(os.environ.get(TILED_ATTENTION_OFF))
    )
    open_payload(Path("model.onnx"), manifest, None)
    return found[0]


def with_int8_cache(manifest: Manifest) -> Manifest:
    """The same, as if its states were int8."""
    states = {state.past for state in manifest.generation.states}
    inputs = [dataclasses.replace(one, dtype="int8" if one.name in states else one.dtype) for one in manifest.inputs]
    return dataclasses.replace(manifest, inputs=tuple(inputs))


def test_an_int8_cache_is_attended_to_as_a_whole(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TILED_ATTENTION_OFF, raising=False)
    assert told(manifest, monkeypatch) is None
    assert told(with_int8_cache(manifest), monkeypatch) == "1"
    assert TILED_ATTENTION_OFF not in os.environ


def test_what_the_user_has_chosen_stands(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TILED_ATTENTION_OFF, "0")
    assert told(with_int8_cache(manifest), monkeypatch) == "0"
    assert os.environ[TILED_ATTENTION_OFF] == "0"
