"""From checkpoints to bundles."""
