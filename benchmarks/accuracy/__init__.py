"""Error against exact attention, by input, landmarks and size of the map."""
