"""Triton kernels. fxfuse imports the pages of a pack and no subpackage, so nothing here needs Triton to be there."""
