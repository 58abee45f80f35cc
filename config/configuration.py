"""Sets the operator's values. Edit them here, or let CIC_CONFIG name another file of this form.

Every key can also be given in the environment: CIC_PORT, CIC_REGISTRY_URL, CIC_BUILD_TMP_FOLDER and
so on, or with _FILE behind it to have the value read from a file. docs/configuration.md describes
every key.
"""

# The image registry to which finished images are pushed. url, user and token may be None: then
# nothing is pushed.
registry_cfg = {
    "url": None,
    "user": None,
    "token": None,
    "images_prefix": "",
}

# Where workflows and packages come from: git URLs or folders, both with an optional #branch, #tag
# or #commit.
repositories_cfg = {
    "workflow_repository": "https://github.com/eflows4hpc/workflow-registry.git",
    "software_repository": None,
}

build_cfg = {
    "tmp_folder": "/path/to/tmp",  # where images are made and kept
    "base_image": "ghcr.io/eflows4hpc/spack_base:0.19.2",
    "dockerfile": "Dockerfile.spack",  # the recipe that comes with the service
    "spack_cfg": None,
    "max_concurrent_builds": 3,
    "singularity_sudo": False,
}

# From here on: only for the service, not for cic_builder.py.
database = "sqlite:///db.sqlite"
port = 5000
host = "0.0.0.0"
application_root = "image_creation"
secret_key = "_put_here_the_secret_key"
captcha_web_site_key = "_put_captcha_web_site_key"
captcha_site_key = "_put_captcha_site_key"
