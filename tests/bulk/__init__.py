"""Many files and requests, on a Ray of this machine."""
