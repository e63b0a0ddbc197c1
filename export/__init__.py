"""Lowering a base model and packaging adapters, for the runtimes that phones have."""
