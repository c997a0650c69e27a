"""The matchers of the comparison, each with the graph that it is made for and the pattern as well as it can take it."""
