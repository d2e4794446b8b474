"""Numbers as text tables, figures and pages."""
