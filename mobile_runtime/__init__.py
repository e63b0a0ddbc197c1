"""The reference runtime: opens bundles as a phone does, answers, and measures parity."""
