"""The streaming runtime: what stops a stream, and the settings that a checkpoint brings along."""
