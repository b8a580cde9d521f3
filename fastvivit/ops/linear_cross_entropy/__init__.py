"""linear_cross_entropy: the loss of a language model's head, its logits never held whole."""
