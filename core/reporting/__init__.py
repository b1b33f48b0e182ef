"""Reports of stored results: rows, tables, figures, the HTML page, and the comparison of two sets."""
