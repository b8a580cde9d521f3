"""varlen_attention: attention over packed sequences, with no padding."""
