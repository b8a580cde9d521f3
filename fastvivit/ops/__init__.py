"""The operators, a folder each: api (contract, checks), op (backends, gradient), reference, backend_*."""
