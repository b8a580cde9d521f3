"""gather_tokens: rows of a token buffer, by id."""
