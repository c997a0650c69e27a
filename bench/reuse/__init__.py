"""Compiling one layer for all, beside the whole graph, Dynamo's deduplication and compiling each layer by hand."""
