"""Trained draft heads: small modules that draft from the target's hidden states, and their drafter.

Must not know: how they are trained, searches, arms.
"""
