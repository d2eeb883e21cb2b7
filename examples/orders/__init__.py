"""A small MCP server: the orders of the invented company Rosterlund. See `__main__`."""
