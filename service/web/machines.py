"""The machine catalogue."""

from __future__ import annotations

from flask import Blueprint, render_template

from service.web.session import service


def add_pages(web: Blueprint) -> None:
    web.add_url_rule("/machines", "machines", machines)


def machines() -> str:
    found = sorted(service().machines.items(), key=lambda item: (item[1].title or item[0]).lower())
    return render_template("machines.html", machines=found)
