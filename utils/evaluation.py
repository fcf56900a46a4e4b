"""From scores to a report: the one protocol every method is measured by (DESIGN §5)."""

THETAS = (0.5, 0.6, 0.7, 0.8, 0.9)  # the paper's sweep
MAX_K = 50  # the paper's sweep
