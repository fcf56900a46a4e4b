"""Scores of any detector, the decisions made from them, and what these are worth."""
