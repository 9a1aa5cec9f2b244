"""The reading side: run folders, what a user names, and the values that tables and pictures show."""
