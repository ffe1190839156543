"""Tools for whoever changes a Triton kernel: resources, search for tiles, expected times."""
