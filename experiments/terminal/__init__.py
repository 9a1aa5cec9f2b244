"""What runs look like on a terminal: lists, details, comparisons, progress."""
