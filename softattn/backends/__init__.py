"""What a call runs on: the backends, and the choice between them."""
