"""Real experience in: tasks, environment runners, replay, datasets."""
