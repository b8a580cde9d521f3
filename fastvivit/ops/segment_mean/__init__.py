"""segment_mean: mean of the rows of each segment."""
