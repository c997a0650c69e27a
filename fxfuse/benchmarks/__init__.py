"""The benchmarks behind `fxfuse bench`: arms, cells, their figures as JSON, and the pages made of them."""
