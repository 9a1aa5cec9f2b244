"""Searchers: which point of the space to try next. They know no model and no prompt."""
