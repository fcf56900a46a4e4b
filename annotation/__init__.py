"""From judged responses to FineHarm records."""
