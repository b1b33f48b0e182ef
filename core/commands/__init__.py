"""What a user runs: run, report, compare, doctor, dataset. May import everything below."""
