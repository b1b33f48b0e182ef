"""What runs inside the training environment: imports torch and a training stack, never ado, Ray or the package above."""
