"""Other people's checkpoints <-> ours, written as data."""
