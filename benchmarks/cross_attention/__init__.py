"""Error, norm and size of the outputs of cross-attention, by spread of the tokens."""
