"""What an image's files told is in its labels, in the SIF, and in what the service says of machines."""

from __future__ import annotations

import json
import secrets
import subprocess

import pytest

from image_builder.docker import daemon, label_names
from image_builder.store.image_store import open_images
from tests.support.daemon_images import remove_images
from tests.support.site import MACHINE, Site, running_service

pytestmark = pytest.mark.system

WITH_MPI = "apt: [libpmi2-0]\npip: [mpich==5.0.2]\nsmoke: [mpichversion]\n"


def test_an_mpi_of_pip_is_known_by_its_files(site: Site) -> None:
    """No MPI was asked for: all that is known of it was read from the image."""
    new = {"text": secrets.token_hex()}  # an image that no earlier run left
    site.add_step("demo", "model", {"eflows4hpc.yaml": WITH_MPI, **new})
    request = {"machine": MACHINE, "workflow": "demo", "step_id": "model", "push": False}
    try:
        with running_service(site) as service:
            ended = service.build(request)
            assert ended["status"] == "FINISHED", ended
            name = ended["filename"]
            record = service.call("GET", f"/image/{name}").json()
            document = service.call("GET", f"/image/{name}/document/facts.json").json()
            with_pmi2 = service.call("GET", f"/image/{name}/check?platform=linux/amd64&pmi=pmi2")
            with_pmix = service.call("GET", f"/image/{name}/check?platform=linux/amd64&pmi=pmix")
            module = service.call("GET", f"/image/{name}/script?machine=vega-cpu&kind=module").text
            library = site.settings.library
            sif = open_images(library.build, library.registry).path_of(ended["sha256"])
            of_sif = _labels_of(str(sif))
        labels = daemon.image_labels(ended["image_id"])
        names = _names_of(ended["image_id"])
    finally:
        remove_images(site)
    assert names == [ended["image_id"]], "a name from before its checks stayed"
    expected = {
        label_names.FACTS: "1",
        label_names.MPI_NAME: "mpich",
        label_names.MPI_FAMILY: "mpich",
        label_names.MPI_VERSION: "5.0.2",
        label_names.MPI_ABI: "libmpi_abi.so.1,libmpi.so.12",
        label_names.MPI_PMI: "pmi2",
    }
    assert expected.items() <= labels.items()
    assert expected.items() <= of_sif.items()
    assert [mpi["version"] for mpi in document["mpis"]] == ["5.0.2"]
    assert document["glibc"] == labels[label_names.GLIBC] and record["filename"] == name
    assert with_pmi2.json()["answer"] == "runs" and with_pmi2.json()["unknown"]
    assert with_pmix.json()["findings"][0]["rule"] == "mpi-launcher-speaks-other"
    assert "cic-exec" in module


def _names_of(image: str) -> list[str]:
    command = ["docker", "image", "inspect", "--format={{json .RepoTags}}", image]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(json.loads(text))


def _labels_of(sif: str) -> dict[str, str]:
    command = ["singularity", "inspect", "--labels", "--json", sif]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(text)["data"]["attributes"]["labels"])
