"""report.html: the tables with pictures, predictions and verdicts."""
