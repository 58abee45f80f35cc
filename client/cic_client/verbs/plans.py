"""Show what would be built, and in what it differs from something earlier."""

from __future__ import annotations

from cic_client import plans
from cic_client.asking import request_of
from cic_client.call import Call
from cic_client.errors import BadInput


def plan(call: Call) -> int:
    """Show what would be built; nothing is."""
    asked, screen = call.asked, call.screen
    if asked.against is None:
        plans.show(screen, call.client.plan(request_of(asked)))
        return 0
    if asked.json:
        raise BadInput(
            "--against shows a difference to people: leave --json out, or compare the JSON of two plans."
        )
    earlier = plans.earlier(call.client, asked.against)
    plans.show_difference(screen, earlier, call.client.plan(request_of(asked)))
    return 0
