"""Measurements to look at: rows of ado's results made into tables, figures, one HTML page, and a comparison of two sets."""
