"""Networks that more than one system has, under the keys that all their checkpoints use (needs torch)."""
