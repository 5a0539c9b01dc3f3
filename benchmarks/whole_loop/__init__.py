"""A sampler as one ONNX graph, with a `Loop` around the network, against the loop on the host."""
