"""Forwards that are recorded once and replayed on a device (CUDA graphs): caches, chains, compiled pieces.

No other room of `selfspec` needs this one, and it must not know searches or costs.
"""
