"""One module per system: its `Runner` computes what a recorded case asks for (see `tests.reference.runner.SystemRunner`)."""
