"""Where documents and passages are kept: three implementations of the port `VectorStore`."""
