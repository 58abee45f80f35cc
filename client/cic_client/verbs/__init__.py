"""Do what a verb says: one function a verb, in modules by what they are about."""
