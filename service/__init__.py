"""The service: accounts, requests, a queue and its workers around the `image_builder` library."""
