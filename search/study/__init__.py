"""The run of a search: its loop, its memory, its workers. It knows scores, not how they are made."""
