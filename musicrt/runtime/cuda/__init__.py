"""Memory and streams of a GPU. Nothing here is imported before a GPU is asked for."""
