"""nn.Modules on packed tokens, one idea a file."""
