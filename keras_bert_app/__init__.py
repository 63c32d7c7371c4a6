"""BERT from raw text to a classifier that answers over gRPC. Imports nothing, so that it costs nothing."""

__version__ = "0.1.0"
