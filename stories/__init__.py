"""Stories: where the data comes from (the story world, StoryFrames)."""
