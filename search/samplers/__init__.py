"""Searchers: Optuna samplers and lists of skip sets that propose the next point of the space.

They must not know objectives or files; only the computed lists (`clasp`, `knapsack`) see the model and its texts.
"""
