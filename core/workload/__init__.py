"""Inputs and outputs of experiments: workload properties, experiments, outputs, models."""
