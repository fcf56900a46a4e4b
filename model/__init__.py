"""Backbone, heads and forward pass."""
