"""The cost of an epoch, derived from a measured throughput."""
