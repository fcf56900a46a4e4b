"""The live runtime: streams followed, held back and stopped."""
