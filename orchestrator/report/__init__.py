"""The report of a sweep: cells.csv as tables, plots, HTML and Markdown. Pure pandas; reads no storage and no clock."""
