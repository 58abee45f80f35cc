"""Check what image files say about themselves."""

from __future__ import annotations

import json

from cic_client.asking import read_bounded
from cic_client.call import Call
from cic_client.text import json_text
from cic_client.verifying import Proof, compared, verify

MAX_KEYS_BYTES = 1024**2


def verified(call: Call) -> int:
    """Check that an image file is what a service signed, to the last byte."""
    path, file_of_keys = call.asked.image, call.asked.keys
    if file_of_keys is None:
        trusted = call.client.public_keys()
    else:
        trusted = read_bounded(file_of_keys, MAX_KEYS_BYTES).decode("utf-8", "replace")
    proof = verify(path, trusted)
    packages = compared(path, proof)
    if call.screen.as_json:
        print(json_text({**proof.as_json(), "packages_compared": packages}))
    else:
        _show(call, str(path), proof, packages)
    return 0


def _show(call: Call, path: str, proof: Proof, packages: int | None) -> None:
    bill = "no" if proof.bill is None else "a"
    call.screen.line(f"{path}: signed with key {proof.key} of {proof.keys}")
    call.screen.line(f"identity: {proof.identity}")
    call.screen.line(
        f"content: all {proof.objects} objects are what was signed, with {bill} bill of materials"
    )
    if proof.bill is not None and packages is None:
        call.screen.line("bill of materials: not compared with the files, which takes unsquashfs")
    elif proof.bill is not None:
        call.screen.line(f"bill of materials: its {packages} packages are in the image")
    call.screen.line("provenance:")
    call.screen.line(json.dumps(proof.request, indent=1, sort_keys=True))
