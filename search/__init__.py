"""Which skip set? A study of skip sets, scored by an objective."""
