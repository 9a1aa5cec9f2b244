"""A model and its parts: where its weights and sublayers are, and how they are run."""
