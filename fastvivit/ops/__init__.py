"""The operators, a folder each: api (contract and checks), op (backends and gradient), reference, backend_*."""
