"""What any training needs, whatever the task: interruption, snapshots, history and the screen."""
