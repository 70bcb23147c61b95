"""The operators of ONNX by theme, one module each; `compiler.frontends.onnx_model.operator_table` finds them all."""
