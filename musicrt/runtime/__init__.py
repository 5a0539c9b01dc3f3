"""The lean runtime: numpy and the chosen backend."""
