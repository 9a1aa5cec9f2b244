"""Files of a run, and what it ran on. It knows nothing of what the rows mean."""
