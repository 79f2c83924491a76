"""A scripted judge for tests: no server, answers from a file or by a rule."""
