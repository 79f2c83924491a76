"""The story world: small videos of two people, annotated in StoryBench's format."""
