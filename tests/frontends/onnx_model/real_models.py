"""The real ONNX models that ship in packages, and inputs on which their outputs mean something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaged_models import package_folder

Arrays = dict[str, np.ndarray[Any, Any]]
SAMPLE_RATE = 22_050
PITCH_SAMPLES = 43_844
BYTE_PADDING = 256


@dataclass(frozen=True)
class RealModel:
    """A model file, and functions that make inputs of two sizes.

    `stated` is what `--input` says of its inputs; `fixed` are the inputs that it fixes, which the original still takes.
    """

    package: str
    path: str
    small: Callable[[], Arrays]
    large: Callable[[], Arrays]
    stated: tuple[str, ...] = ()
    fixed: tuple[tuple[str, int], ...] = ()

    @property
    def file(self) -> Path:
        """Where the model lies."""
        return package_folder(self.package) / self.path


def page(batch: int, height: int, width: int) -> np.ndarray[Any, Any]:
    """Dark strokes in lines on white paper, normalised as PP-OCR does: float32 [batch, 3, height, width]."""
    random = np.random.default_rng(height + width)
    image = np.ones((batch, height, width), np.float32)
    for number in range(batch):
        for top in range(6, height - 12, 28):
            left = 8
            while left < width - 10:
                stroke = int(random.integers(2, 5))
                image[number, top : top + int(random.integers(8, 20)), left : left + stroke] = random.uniform(0, 0.2)
                left += stroke + int(random.integers(2, 9))
    return np.repeat(((image - 0.5) / 0.5)[:, None], 3, axis=1).astype(np.float32)


def chord(batch: int) -> np.ndarray[Any, Any]:
    """Two seconds of three notes with overtones: float32 [batch, samples, 1]."""
    seconds = np.arange(PITCH_SAMPLES) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * note * over * seconds) / over for note in (220.0, 277.2, 329.6) for over in (1, 2, 3)]
    sound = np.sum(tones, axis=0) / 6
    return np.stack([sound / (number + 1) for number in range(batch)])[..., None].astype(np.float32)


def speech(batch: int) -> np.ndarray[Any, Any]:
    """Windows of a voice-like sound at 16 kHz, 36 ms each: float32 [batch, 576]."""
    seconds = np.arange(576 * batch) / 16_000
    voice = sum(np.sin(2 * np.pi * 130 * n * seconds) / n for n in range(1, 12)) * (1 + np.sin(2 * np.pi * 4 * seconds))
    return (0.1 * voice).reshape(batch, 576).astype(np.float32)


def file_bytes(batch: int) -> np.ndarray[Any, Any]:
    """The first and last 1,024 bytes of Python files, as magika reads them: int32 [batch, 2048]."""
    rows = []
    for path in sorted(Path(__file__).parent.glob("*.py"))[:batch]:
        content = path.read_bytes().strip()
        start, end = content[:1024], content[-1024:]
        padding = [BYTE_PADDING] * 1024
        rows.append([*start, *padding[len(start) :], *padding[len(end) :], *end])
    return np.array(rows, np.int32)


def _vad(batch: int) -> Arrays:
    return {"input": speech(batch), "state": np.zeros((2, batch, 128), np.float32)}


def _rate() -> Arrays:
    return {"sr": np.array(16_000, np.int64)}


def _sequence(windows: int) -> Arrays:
    empty = np.zeros((1, 1, 128), np.float32)
    return {"input": speech(windows), "h": empty, "c": empty}


VAD_INPUTS = ("input=float32[batch,576]", "state=float32[2,batch,128]")
REAL_MODELS = {
    "ocr-classification": RealModel(
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lambda: {"x": page(1, 48, 192)},
        lambda: {"x": page(3, 64, 256)},
    ),
    "ocr-detection": RealModel(
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        lambda: {"x": page(1, 160, 192)},
        lambda: {"x": page(2, 224, 320)},
    ),
    "ocr-recognition": RealModel(
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        lambda: {"x": page(1, 48, 160)},
        lambda: {"x": page(2, 48, 320)},
    ),
    "magika": RealModel(
        "magika",
        "models/standard_v3_3/model.onnx",
        lambda: {"bytes": file_bytes(1)},
        lambda: {"bytes": file_bytes(4)},
    ),
    "basic-pitch": RealModel(
        "basic_pitch",
        "saved_models/icassp_2022/nmp.onnx",
        lambda: {"serving_default_input_2:0": chord(1)},
        lambda: {"serving_default_input_2:0": chord(2)},
    ),
    "silero-vad": RealModel(
        "silero_vad",
        "data/silero_vad.onnx",
        lambda: _vad(1) | _rate(),
        lambda: _vad(3) | _rate(),
        (*VAD_INPUTS, "sr=int64"),
    ),
    "silero-vad-16k": RealModel(
        "silero_vad",
        "data/silero_vad.onnx",
        lambda: _vad(1),
        lambda: _vad(3),
        (*VAD_INPUTS, "sr=16000"),
        (("sr", 16_000),),
    ),
    "silero-vad-sequence": RealModel(
        "silero_vad", "data/silero_vad_16k_sequence.onnx", lambda: _sequence(4), lambda: _sequence(9)
    ),
}
"""By the names that tests and benchmarks use."""
