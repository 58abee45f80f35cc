"""The library: from a workflow step and a target machine to a container image.

It knows neither Flask, nor a database, nor where its settings come from. The entry point is
`image_builder.pipeline.build_image`; `docs/architecture.md` tells how its parts hang together.
"""
