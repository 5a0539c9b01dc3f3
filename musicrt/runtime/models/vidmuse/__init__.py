"""VidMuse: music for a video, 32 kHz mono (arXiv:2406.04321)."""
