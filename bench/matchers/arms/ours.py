"""fxfuse: ``find_sites`` with its gates and near misses; replaced through ``fxfuse.rewrite``."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

import fxfuse
from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.captures import dynamo_graph, post_grad_graph
from bench.matchers.perturbations import Case
from bench.matchers.reference import early_only, replacement_only
from fxfuse import library
from fxfuse.match import find_sites, select
from fxfuse.view import View

PATTERN = "rms_norm_gated_mlp"
