"""Train draft heads: a store of the model's own text and hidden states, losses, held-out acceptance, and the loop.

Must not know: configurations, searches, arms.
"""
