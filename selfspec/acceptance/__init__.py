"""Predictors of whether a drafted token will be accepted, which stop rules and trees read in place of the confidence.

It must not know drafters, stop rules or how a predictor is trained.
"""
