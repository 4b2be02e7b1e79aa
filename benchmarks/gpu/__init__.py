"""What is done on a machine with a GPU: build, tests, compute-sanitizer, speed. See __main__.py."""
