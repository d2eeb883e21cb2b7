"""Rosterlund's orders as an MCP server.

    python -m examples.orders                          over standard input and output
    python -m examples.orders --http 127.0.0.1:8765    over streamable HTTP, at http://127.0.0.1:8765/mcp

`order_status` is what the roster gives to the billing agent. `cancel_order` is there to show the allow-list: the roster
does not name it, so no model is offered it, and none can call it.
"""

import argparse
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from examples.orders.book import order_book

OrderId = Annotated[str, Field(description="The order's id, such as RL-1042.")]

book = order_book()
server = MCPServer("orders", instructions="Orders of Rosterlund, by id, such as RL-1042.", log_level="WARNING")


@server.tool()
def order_status(order_id: OrderId) -> str:
    """The state of an order: what was ordered, when, for how much, and where it stands."""
    known = order_id.strip().upper()
    if (order := book.get(known)) is None:
        return f"There is no order {known[:40]!r}. Ids look like RL-1042."
    return f"Order {known} of {order.ordered_on}: {order.product}, EUR {order.amount} before VAT. It is {order.status}."


@server.tool()
def cancel_order(order_id: OrderId) -> str:
    """Cancel an order that has not started yet."""
    known = order_id.strip().upper()
    if (order := book.get(known)) is None:
        return f"There is no order {known[:40]!r}. Ids look like RL-1042."
    if not order.is_open:
        return f"Order {known} cannot be cancelled: it is {order.status}."
    order.status = "cancelled"
    return f"Order {known} is cancelled."


def main() -> None:
    """Serve until the input ends or the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m examples.orders", description="Rosterlund's orders, over MCP.")
    parser.add_argument("--http", metavar="HOST:PORT", help="streamable HTTP instead of standard input and output")
    address = parser.parse_args().http
    if address is None:
        server.run("stdio")
        return
    host, _, port = address.rpartition(":")
    server.run("streamable-http", host=host or "127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
