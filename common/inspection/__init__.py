"""What is in the data, and what is wrong with it: statistics, label audit, review page."""
