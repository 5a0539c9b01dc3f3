"""The nano codec: what it is trained on, how it is trained, and what it is kept as."""
