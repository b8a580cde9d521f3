"""The cases, a file a family: shapes of real layers, bytes and FLOPs, peers, claims."""
