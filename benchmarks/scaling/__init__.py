"""Time, peak memory and error over the number of tokens, beside other attentions."""
