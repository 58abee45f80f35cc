"""The firewall's rules, as values. That they work is shown in the system tests."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from image_builder.docker.isolation.firewall import ONWARD, TO_HOST, Policy, rules
from image_builder.settings import BuildSettings, LibrarySettings

POLICY = Policy(
    bridge="docker0",
    resolvers=("10.0.0.53", "fd00::53"),
    reachable=("10.1.0.0/16",),
    blocked=("10.0.0.0/8", "fd00:ec2::254/128"),
)


def test_the_order_of_the_rules() -> None:
    """Answers, resolvers and what is let through come before what is refused."""
    made = [" ".join(rule) for rule in rules(POLICY, 4)]
    assert made == [
        f"{TO_HOST} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        f"{TO_HOST} -d 10.0.0.53/32 -p udp -m udp --dport 53 -j RETURN",
        f"{TO_HOST} -d 10.0.0.53/32 -p tcp -m tcp --dport 53 -j RETURN",
        f"{TO_HOST} -d 10.1.0.0/16 -j RETURN",
        f"{ONWARD} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        f"{ONWARD} -d 10.0.0.53/32 -p udp -m udp --dport 53 -j RETURN",
        f"{ONWARD} -d 10.0.0.53/32 -p tcp -m tcp --dport 53 -j RETURN",
        f"{ONWARD} -d 10.1.0.0/16 -j RETURN",
        f"{TO_HOST} -j REJECT",
        f"{ONWARD} -o docker0 -j REJECT",
        f"{ONWARD} -d 10.0.0.0/8 -j REJECT",
    ]


def test_each_family_has_its_own_addresses() -> None:
    made = [" ".join(rule) for rule in rules(POLICY, 6)]
    assert not any("10." in rule for rule in made)
    assert f"{ONWARD} -d fd00:ec2::254/128 -j REJECT" in made
    assert f"{TO_HOST} -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN" in made


def test_by_default_metadata_addresses_are_blocked(library_settings: LibrarySettings) -> None:
    policy = Policy.of(library_settings.build, "docker0")
    assert {"169.254.0.0/16", "fd00:ec2::254/128"} <= set(policy.blocked)
    assert not any(name.startswith("127.") for name in policy.resolvers)


@pytest.mark.parametrize("value", ["somewhere", "10.0.0.0/33", "10.0.0.1/8", "-j", ""])
def test_only_networks_become_rules(value: str, library_settings: LibrarySettings) -> None:
    given = library_settings.build.model_dump() | {"reachable_networks": (value,)}
    with pytest.raises(ValidationError, match="reachable_networks"):
        BuildSettings.model_validate(given)
