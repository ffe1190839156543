"""Measurements of softattn against its rivals: speed, memory and error.

Each command prints a table and writes a JSON file and a figure into a folder of its own choosing::

    python -m benchmarks.scaling     time and memory over the number of tokens
    python -m benchmarks.pinv        the Newton inverses against torch.linalg
    python -m benchmarks.accuracy    error against the exact O(n²) answers on a photograph

They take the packages ``rich``, ``matplotlib``, ``numpy`` and, for ``accuracy``, ``scikit-learn``
and ``pillow``; ``nystrom-attention`` and, on CUDA, ``flash-linear-attention`` take part in
``scaling`` where they are installed.
"""
