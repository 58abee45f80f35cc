"""Names what a recipe and its callers share: stages, files, secrets and contexts."""

from __future__ import annotations

INSTALL_TREES = ("/opt/spack/opt/spack", "/spack/opt/spack")
"""Folders of an image that hold what Spack built; externals are in other ones."""
LATEST_RECIPE = "1"
LOCK_STAGE = "lock"
"""Build target that exports `spack.lock` alone; only in recipes with `has_spack`."""
FINAL_STAGE = "final"
SLIM_STAGE = "slim"
"""Build target of the slim image, and of the report that compares it with the full one.

Both exist only with a runtime base.
"""
REPORT_STAGE = "report"
REPORT_FILE = "report.json"
DEBUG_STAGE = "debug"
"""Build target of the environment in which Spack works, for debugging.

It exists only in recipes with `has_spack`.
"""
LOCK_FILE = "cic/spack.lock"
"""Path of the lockfile to install in the build context; `render` does not make it."""
CA_BUNDLE_FILE = "site/ca.pem"
"""Path of the CA bundle that steps trust in the build context; empty where the site has none."""
JOBS_FILE = "site/jobs"
"""Path of the number of compile jobs in the build context."""
SITE_SECRET = "site_"
"""Prefix of the secrets that give a step what it needs of the site.

They are `site_apt`, `site_spack` and `site_pip`, and `site_base` for a base image's recipe.
"""
FACTS_STAGE = "facts"
"""Build target that exports what a slim image needs to know of the full one."""
FACTS_FOLDER = "cic/facts"
"""Path of those facts in the build context, once they were checked."""
USED_STAGE = "used"
"""Build target that exports what the steps wrote down of what they used; for the files, see `proof.used`."""
LOOK_STAGE = "held"
"""Build target that exports, as `HELD_FILE`, what `packages.py list` says of the cache mount."""
HELD_FILE = "held"
BRING_STAGE = "brought"
"""Build target that puts packages of the build context `PACKAGES_CONTEXT` into the cache mount."""
FETCH_STAGE = "packages"
"""Build target that exports packages of the cache mount."""
WANTED_FILE = "cic/wanted"
"""Path in the build context of the hashes of the packages those three work on, a line each."""
PACKAGES_CONTEXT = "spack-packages"
BUNDLE_CONTEXT = "cic-bundle"
"""Name of the additional build context with what a bundle holds, which stands for every server."""
BUNDLE_SOURCES = "sources.list"
"""The file of a bundle that names its Debian packages as apt reads it; only where it has some."""
BUNDLE_DEBS, BUNDLE_SPACK_SOURCES, BUNDLE_BUILT = "debs", "sources", "packages"
"""The folders of a bundle: repositories of Debian packages, a Spack source mirror, and built packages.

Wheels are in `wheels`.
"""
GATHERED_STAGE = "gathered"
"""Build target that exports what the steps of a recipe fetch, for a build without network.

It exists only in recipes that gather.
"""
SOURCES_CONTEXT = "spack-sources"
"""Name of the additional build context (`--build-context`) for `RecipeOptions.sources_folder`."""
