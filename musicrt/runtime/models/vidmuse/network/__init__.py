"""VidMuse's networks, under the keys of the official files (needs torch)."""
