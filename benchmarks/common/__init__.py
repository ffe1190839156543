"""What all benchmarks share: options, timing, inputs, tables, figures and files."""
