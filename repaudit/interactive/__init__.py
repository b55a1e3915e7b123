"""The report's figures with plotly: each function makes one figure, in theme-neutral colours."""
