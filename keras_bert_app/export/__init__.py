"""Checkpoint -> bundle, and the proof that the bundle stands alone."""
