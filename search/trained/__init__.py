"""Which trained draft? A search over what to train, cheap to expensive: untrained maps, short trainings, a race.

Must not know: skip sets as bits (`search.study`), configuration, terminals.
"""
