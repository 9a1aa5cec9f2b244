"""Draft and verify at the same time (PEARL): the verifier in this process, the drafter in another one.

`state` is the state machine, `schedule` the loop, `partner` a drafter in this process that stands for the other one,
`process` and `child` the two ends of the other one. It must not know searches or Hydra.
"""
