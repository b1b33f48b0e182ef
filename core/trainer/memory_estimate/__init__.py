"""Predicts the memory of a training run by tracing it on tensors without data."""
