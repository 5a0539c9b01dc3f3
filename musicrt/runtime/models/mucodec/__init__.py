"""MuCodec: stereo music at 0.35 kbps and up, 48 kHz (arXiv:2409.13216)."""
