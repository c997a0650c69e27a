"""A pack of one pattern, as somebody else would write it: `act(gate) * up`."""
