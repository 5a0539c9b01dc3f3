"""ONNX -> TensorRT engines, without a GPU."""
