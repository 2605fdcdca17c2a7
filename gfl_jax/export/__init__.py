"""Parameters and programs out: safetensors, StableHLO and ONNX."""
