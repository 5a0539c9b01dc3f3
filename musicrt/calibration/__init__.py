"""What may be computed in fewer bits, what that costs, and the graphs that do."""
