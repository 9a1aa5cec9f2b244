"""Runs on a terminal: lists, details, comparisons and live progress.

It must not know models, Hydra or how a run is made.
"""
