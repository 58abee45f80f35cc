"""Serve the page of the machine catalogue, and recognise a machine from pasted facts."""

from __future__ import annotations

import json

from flask import Blueprint, render_template, request
from flask_wtf import FlaskForm
from wtforms import TextAreaField

from image_builder.errors import InvalidRequest
from image_builder.request import machine_search
from image_builder.request.collected_facts import parse_facts
from image_builder.request.recognise import Recognised, recognise
from service.api.queries import MAX_SEARCH
from service.web.session import service


class FactsForm(FlaskForm):  # type: ignore[misc]
    collected = TextAreaField(
        "Facts of a machine",
        description="Run `./cic_cli here` on a compute node, and paste what it prints. Nothing of it is kept.",
        render_kw={"rows": 5, "spellcheck": "false", "autocomplete": "off"},
    )


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/machines", "machines", machines)
    web.add_url_rule("/machines", "recognise_machine", recognise_machine, methods=["POST"])


def machines() -> str:
    return _page(FactsForm(formdata=None))


def recognise_machine() -> str:
    """Show the same page with the machine of the pasted facts, or with what is wrong with them."""
    form = FactsForm()
    if not form.validate_on_submit():
        return _page(form)
    try:
        facts = parse_facts((form.collected.data or "").encode())
    except InvalidRequest as error:
        form.collected.errors = [
            f"{one.field}: {one.problem}; {one.hint}." for one in error.problems
        ]
        return _page(form)
    return _page(form, recognise(facts, service().machines))


def _page(form: FactsForm, found: Recognised | None = None) -> str:
    search = request.args.get("search", "")[:MAX_SEARCH]
    known = service().machines
    entries = sorted(known.items(), key=lambda item: (item[1].title or item[0]).lower())
    return render_template(
        "machines.html",
        machines=entries,
        words_of=machine_search.words_of,
        found_names=set(machine_search.found(known, search)),
        search=search,
        form=form,
        found=found,
        description=json.dumps({"machine": dict(found.machine)}, indent=2) if found else "",
    )
