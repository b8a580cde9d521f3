"""scatter_tokens: put rows at their places, fill the rest."""
