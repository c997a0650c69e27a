"""Loads in the process that the others are forked from what each of them needs, by examining one model there.

Most of the time of a first compile goes into imports: this makes a run four times as fast. One thread, so that nothing
but this process has to survive the fork.
"""

import torch

from bench.coverage import architectures, quiet, worker

torch.set_num_threads(1)
quiet.silence()
worker.examine(architectures.by_name("llama"), dtypes=["fp32"])
torch._dynamo.reset()
