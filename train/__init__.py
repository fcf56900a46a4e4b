"""Training: one entry point a backbone family."""
