"""The streaming runtime: follows a response while it is written and says when to stop it."""
