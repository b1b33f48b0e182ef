"""What a host and its trainers share: messages, the stopping rule, what a model supports. Standard library only."""
