"""From an official checkpoint to a bundle of ONNX stages."""
