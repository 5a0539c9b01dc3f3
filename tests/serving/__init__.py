"""What serves bundles to others."""
