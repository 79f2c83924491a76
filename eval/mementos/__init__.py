"""The Mementos benchmark (paper section 6.1, Table 3): data, predictions, keywords, scores. See docs/mementos.md."""
