"""One checkpoint and one variant on a split of stories: predictions.jsonl."""
