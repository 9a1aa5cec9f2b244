"""Seconds, ratios and exactness. It knows nothing of models' insides."""
