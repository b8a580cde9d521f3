"""What fastvivit is timed against, a file a family. Each is written as its best users would write it."""
