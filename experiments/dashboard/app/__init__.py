"""The script that Streamlit runs. It lies alone, since Streamlit puts its folder in front of all modules."""
