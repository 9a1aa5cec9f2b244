"""The quality of answers: one module for each measure, the sandbox for code, and a model for lm-evaluation-harness.

Measures know texts only. They must not know models; `judge` alone knows run folders and configurations.
"""
