"""Answer the REST calls about machines and their CPUs."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from image_builder.errors import FieldProblem, InvalidRequest
from image_builder.request import cpu_targets, machine_search
from image_builder.request.collected_facts import CollectedFacts, parse_facts
from image_builder.request.recognise import recognise
from service.api import machine_answers
from service.api.openapi import describes
from service.api.queries import ArchitectureQuery, MachineSearch, parse_query
from service.context import service


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/architecture/", view_func=architectures)
    api.add_url_rule("/machine/", view_func=machines)
    api.add_url_rule("/machine/recognise", view_func=recognise_machine, methods=["POST"])


@describes(
    "List the targets that can be asked for",
    query=ArchitectureQuery,
    answer=machine_answers.ArchitectureList,
)
def architectures() -> Response:
    """Return the targets that a request may name; `?platform=` chooses those of one platform."""
    targets, asked = (
        cpu_targets.known_targets(),
        parse_query(ArchitectureQuery, request.args).platform,
    )
    if asked is not None:
        try:
            platform = cpu_targets.parse_platform(asked)
        except cpu_targets.UnknownName as error:
            raise InvalidRequest([FieldProblem("platform", str(error), error.hint)]) from None
        targets = [target for target in targets if target["platform"] == platform]
    return jsonify({"architectures": targets, "platforms": list(cpu_targets.platforms())})


@describes("List the machine catalogue", query=MachineSearch, answer=machine_answers.MachineList)
def machines() -> Response:
    """Return the machine catalogue: what a request may name as its `machine`.

    `?search=` chooses the machines that have all of its words.
    """
    search = parse_query(MachineSearch, request.args).search
    return jsonify(machine_answers.machine_list(machine_search.found(service().machines, search)))


@describes(
    "Recognise a machine from collected facts",
    body=CollectedFacts,
    answer=machine_answers.RecognisedAnswer,
    is_costly=True,
)
def recognise_machine() -> Response:
    """Return which machine the facts of `cic_cli here` belong to; the facts are not kept."""
    facts = parse_facts(request.get_data(cache=False))
    return jsonify(recognise(facts, service().machines).as_dict())
