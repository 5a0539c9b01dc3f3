"""SemantiCodec: music, speech and sound at 0.3 to 1.4 kbps, 16 kHz (arXiv:2405.00233)."""
