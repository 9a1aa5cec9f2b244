"""One table of all systems: ways to decode, each with its speed on every class of text, its costs and its preparation.

It reads run folders by `experiments.paper.evidence` and must not know models or configurations of verbs.
"""
