"""The page, the picture and the LaTeX table of a comparison of rankings."""
