"""This project and its peers, side by side."""
