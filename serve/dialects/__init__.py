"""What other guards speak, on the same sessions."""
