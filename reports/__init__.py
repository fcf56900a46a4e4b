"""What readers see: tables, figures, pages."""
