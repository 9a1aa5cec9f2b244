"""Training of predictors of acceptance, and the comparison of stop rules that read them.

The verb is `selfspec train predictor=...`.
"""
