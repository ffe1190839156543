"""What every room uses: validation, precision, padding, compilers."""
