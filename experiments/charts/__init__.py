"""Interactive figures: functions that turn rows into plotly figures, for the dashboard, the HTML report and trackers.

It must not know models, Hydra or Streamlit; only `html_report` knows runs.
"""

PRIMARY = "#0072B2"  # Okabe and Ito's blue; it stands here because its users also run where plotly is absent
