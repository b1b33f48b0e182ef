"""ado actuator that measures fine-tuning with IBM's fms-hf-tuning library."""
