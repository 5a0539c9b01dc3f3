"""Lower precision, decided by what it costs: representative inputs, ranges, quality gates, and what is noted of them in the bundle."""
