"""Files and formats: ONNX, safetensors, PyTorch weights, checkpoints."""
