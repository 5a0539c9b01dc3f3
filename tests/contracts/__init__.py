"""What every system and every backend has to keep to."""
