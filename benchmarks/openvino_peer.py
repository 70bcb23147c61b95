"""OpenVINO int8: NNCF's post-training quantization for transformers, smoothed and calibrated on given inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Read FLOAT_ONNX, calibrate on the .npz files of CALIBRATION, write RESULT (.xml)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("float_onnx", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    import nncf
    import openvino

    samples = [dict(np.load(path)) for path in sorted(arguments.calibration.glob("*.npz"))]
    model = openvino.Core().read_model(str(arguments.float_onnx))
    quantized = nncf.quantize(
        model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
    )
    openvino.save_model(quantized, str(arguments.result))


if __name__ == "__main__":
    main()
