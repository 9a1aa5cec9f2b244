"""What forwards cost on this machine or a given one: measured once, then a table."""
