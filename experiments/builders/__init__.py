"""From a composed configuration to objects: models, prompts, arms, searches, costs, trainings.

Must not know: how configurations are composed beyond `option`, verbs.
"""
