"""What a machine with a GPU is rented for: correctness first, then figures, in one command."""
