"""The commands run, report, compare, doctor and dataset. May import all folders."""
