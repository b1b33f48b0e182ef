"""ado actuator that measures fine-tuning with Hugging Face TRL's SFTTrainer."""
