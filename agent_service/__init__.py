"""The internal gRPC service: retrieval and generation. Keeps nothing of a conversation beyond the turn in hand."""
