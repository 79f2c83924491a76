"""StoryFrames: StoryBench-like annotations and videos in, the published 13-field dataset out (paper section 4)."""
