"""What can be asked for and what is answered: properties, experiments, outputs, models."""
