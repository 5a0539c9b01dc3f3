"""Fuzzing of everything that reads what others may have made."""
