"""SemantiCodec: its contenders and suites."""
