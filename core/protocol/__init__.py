"""Shared by hosts and trainers: messages, the stopping rule, supported features. Imports the standard library only."""
