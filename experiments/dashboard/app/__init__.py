"""The script that Streamlit runs. Streamlit puts its folder before all other import paths, so the script lies alone.

It must not compute or draw anything itself: the pages of `experiments.dashboard` do.
"""
