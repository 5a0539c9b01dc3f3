"""MuCodec's networks in torch, under the official checkpoints' keys; one file per network."""
