"""Who proposes tokens: one file a drafter, and the spec from which any of them is built."""
