"""The models: backbone, heads, losses, loading."""
