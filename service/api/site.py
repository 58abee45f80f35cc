"""Answer the REST calls about the service itself."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, jsonify, request

from image_builder.proof import keys
from service.api import responses
from service.api.openapi import TEXT, Answer, describes, document
from service.context import service
from service.errors import Missing
from service.metrics import exposition


def add_calls(api: Blueprint) -> None:
    api.add_url_rule("/health/live", view_func=live)
    api.add_url_rule("/health/ready", view_func=ready)
    api.add_url_rule("/key/", view_func=public_keys)
    api.add_url_rule("/metrics", view_func=metrics)
    api.add_url_rule("/openapi.json", view_func=openapi)


@describes(
    "Ask whether the server answers", answer=responses.Alive, is_public=True, is_counted=False
)
def live() -> Response:
    return jsonify({"status": "alive"})


@describes(
    "Ask whether the service can build", answer=responses.Ready, is_public=True, is_counted=False
)
def ready() -> Response:
    return service().readiness.answer()


@describes(
    "The public keys of what this service signs",
    is_public=True,
    problems=(404,),
    answers={
        200: Answer(
            description="Keys in PEM: the present one, then old ones.", content={"text/plain": TEXT}
        )
    },
)
def public_keys() -> Response:
    """Return the keys with which `cic_cli verify` and `apptainer verify` check images.

    Apptainer takes the first one of a file.
    """
    published = keys.published(service().settings.library.proof)
    if not published:
        raise Missing(
            "This service signs no images.", hint="Its operator may set a key (proof_cfg)."
        )
    return Response("".join(published), mimetype="text/plain")


@describes(
    "Numbers for Prometheus",
    is_public=True,
    is_counted=False,
    answers={200: Answer(description="Prometheus' text format.", content={"text/plain": TEXT})},
)
def metrics() -> Response:
    return exposition(service().engine, lost_after_s=service().settings.service.lost_worker_after_s)


@describes(
    "This description",
    is_public=True,
    answers={
        200: Answer(
            description="An OpenAPI document.", content={"application/json": {"type": "object"}}
        )
    },
)
def openapi() -> Response:
    return jsonify(document(current_app, request.root_path))
