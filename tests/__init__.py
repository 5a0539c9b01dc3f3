"""Tests of MusicRT."""
