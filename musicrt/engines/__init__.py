"""ONNX stages -> TensorRT engines: profiles, fingerprints, building, what is in a plan."""
