"""One folder per system; the registry finds them by name."""
