"""THE METRICS: predictions to a report and its intervals; recipes compared over seeds."""
