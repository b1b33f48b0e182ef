"""A throw-away actuator for the soak: the plugins' shape, the real core, and TRL's real stack with faults. Imports nothing."""
