"""What is fitted before a search: bridges and vocabularies, from the model's own hidden states and text."""
