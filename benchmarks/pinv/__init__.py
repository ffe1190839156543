"""Error, steps and time of the Newton inverses, beside ``torch.linalg``."""
