"""A page in the browser that plays what a bundle makes of audio or a video; `musicrt web` opens it (extra `web`)."""
