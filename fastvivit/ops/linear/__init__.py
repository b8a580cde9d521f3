"""linear: the matrix product of the encoder's layers."""
