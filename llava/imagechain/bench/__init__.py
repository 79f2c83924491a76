"""The training benchmark: rows of levers, the steps that time them, made-up stories, the machine."""
