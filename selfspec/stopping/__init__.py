"""When to stop drafting: what a rule is, the rules there are, and how a rule is written down and read back."""
