"""The speed of each stage, beside another way of doing it."""
