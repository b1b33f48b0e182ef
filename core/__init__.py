"""The measuring core that both plugins link to; see docs/architecture.md for its folders."""
