"""The commands run, plan, report, compare, doctor, dataset and convert. May import all folders."""
