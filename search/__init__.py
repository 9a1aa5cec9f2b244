"""Which skip set? A study of skip sets, scored by an objective; Optuna is known to `study.py` and `samplers.py` alone."""
