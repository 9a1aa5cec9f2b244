"""Refinement of the drafts of blind heads: their likeliest tokens are scored again, by n-grams or a small network.

Source: Kim et al. 2024 (arXiv:2404.09221).

Must not know: how heads are trained, searches, arms.
"""
