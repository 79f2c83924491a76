"""The story world's language and its exact judge."""
