"""Runs in the training environment. Imports torch, a training stack and ``core.protocol``, never ado, Ray or another folder of ``core``."""
