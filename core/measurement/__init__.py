"""One measurement, from property values to a verdict. Imports neither ado, Ray nor torch."""
