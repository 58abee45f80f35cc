"""Give a shell what it needs to complete command lines."""

from __future__ import annotations

from argcomplete.shell_integration import shellcode

from cic_client.call import Call


def completion(call: Call) -> int:
    """Print what a shell evaluates at its start."""
    # Where nothing completes, a shell would offer its files, which are no machines and no images.
    print(shellcode(["cic"], use_defaults=False, shell=call.asked.shell))
    return 0
