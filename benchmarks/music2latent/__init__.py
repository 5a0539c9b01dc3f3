"""Music2Latent: its contenders and suites."""
