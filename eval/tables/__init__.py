"""Tables 1 and 2, Figure 5, and the comparison of two runs."""
