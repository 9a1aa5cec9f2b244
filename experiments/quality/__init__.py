"""How good the answers are: one module for each measure. They know texts; they know nothing of models or runs."""
