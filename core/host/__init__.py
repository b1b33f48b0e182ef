"""One node: its trainer processes, their environment, device sampling and files. Imports neither ado nor Ray."""
