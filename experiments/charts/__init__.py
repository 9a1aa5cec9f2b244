"""Interactive figures: rows in, a plotly figure out; for the dashboard, the HTML report and whoever else draws."""

PRIMARY = "#0072B2"  # Okabe and Ito's blue; here, since it is wanted where plotly may be absent
