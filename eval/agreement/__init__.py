"""Can the judge be trusted? A blind sample for people to label, and how people and judges agree."""
