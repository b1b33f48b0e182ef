"""A throw-away plugin: two actuators of the plugins' shape, the real core, and a stack that only takes time. Imports nothing."""
