"""The examples and pictures of docs/debugging.md: six situations, what one sees and what one does.

python -m bench.debugging             print the page
python -m bench.debugging --write     write the page
python -m bench.debugging --pictures  make the pictures, in a headless Chromium that Playwright drives
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fxfuse
from bench import drifting
from bench.debugging_models import LAYERS, Blocks, Decoder, Eps, Lora, PostNorm, Router, batch

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "debugging.md"
PICTURES = DOCS / "pictures"
PATTERN = "rms_norm_gated_mlp"
OPTIONS: dict[str, Any] = {"patterns": [PATTERN], "kernels": {PATTERN: "plain"}, "on_miss": "silent"}


@dataclass(frozen=True)
class Situation:
    """``shows`` gives what one sees; ``does`` what one does, in words."""

    title: str
    before: str
    shows: Callable[[], str]
    does: str
    picture: str = ""


def explained(make: Callable[[], Any]) -> str:
    torch._dynamo.reset()
    with torch.no_grad():
        return str(fxfuse.explain(make(), (batch(),), options=OPTIONS))


def mixed() -> Decoder:
    """Six layers, two of which have a router beside the MLP."""
    return Decoder([Blocks() if i not in (2, 4) else Router() for i in range(LAYERS)])


def unavailable() -> str:
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            fxfuse.explain(Decoder([Blocks()]), (batch(),), options={"kernels": {PATTERN: "triton_decode"}})
    except fxfuse.OptionError as error:
        return f"fxfuse.OptionError: {error}"
    return "the kernel runs here"


def drift() -> str:
    torch._dynamo.reset()
    model = drifting.model()
    with torch.no_grad():
        found = fxfuse.bisect(model, (drifting.batch(),), options={**drifting.OPTIONS, "inner": "eager"})
        report = fxfuse.verify(model, (drifting.batch(),), options=drifting.OPTIONS)
    asked = ">>> print(fxfuse.{}(model, (x,), options=options))"
    return f"{asked.format('bisect')}\n{found}\n\n{asked.format('verify')}\n{report}"


SITUATIONS = (
    Situation(
        "The eps is no number",
        'A norm keeps its eps as a tensor (`self.register_buffer("eps", torch.tensor(1e-6))`). It computes the same, '
        "but what a kernel would get is not known until the model runs, and may change.",
        lambda: explained(lambda: Decoder([Eps() for _ in range(LAYERS)])),
        "Read `graph`, the model's line. Keep eps as a Python number (`self.eps = 1e-6`). If it comes from a config, "
        "`float(config.eps)` is enough.",
    ),
    Situation(
        "A router reads the norm",
        "Two of six layers have a router that reads the norm's result beside the MLP. The other four are fused.",
        lambda: explained(mixed),
        "`reader` names who else needs the value. Fused, the norm would be computed twice. Nothing is wrong with the "
        "model: leave it, or write a pattern that returns the norm, too, with `keep` "
        "([authoring.md](authoring.md)).",
        "router",
    ),
    Situation(
        "The norm comes after (OLMo2)",
        "A post-norm model normalises what attention and MLP return. Between that norm and the next projections stands "
        "the residual's sum.",
        lambda: explained(lambda: Decoder([PostNorm() for _ in range(LAYERS)])),
        "`in between` says that everything else is there, behind the node that is named. No kernel for this pattern "
        "may reach over a sum. `gated_mlp` has the MLP without its norm.",
    ),
    Situation(
        "LoRA in the way",
        "Adapters that are not merged add a product of two small matrices to a projection.",
        lambda: explained(lambda: Decoder([Lora() for _ in range(LAYERS)])),
        "For inference, merge the adapters (`model.merge_and_unload()` in peft), and the site is there again. While "
        "they are trained, the projections are not what the pattern computes.",
        "lora",
    ),
    Situation(
        "The kernel is not available",
        "A kernel that is asked for by name is never replaced by another in silence. Here a Triton kernel, on a CPU:",
        unavailable,
        "`fxfuse doctor` lists every kernel and what it lacks on this machine. Give names in order of preference "
        '(`kernels={...: ["triton_decode", "plain"]}`), or none, and the choice is fxfuse\'s.',
    ),
    Situation(
        "The numbers drift",
        "A pack of your own has a kernel that is wrong in one variant: for gelu it computes silu. The model has eight "
        "sites, and one of them is of that variant.",
        drift,
        "`bisect` compiles with ever fewer sites rewritten, and names the first that breaks the comparison with eager; "
        "or a check of your own, such as a loss over some steps of training: `check=lambda compiled: ...`. `verify` "
        "measures every site on its own inputs against float64. `bisect(...).repro` is a script with that site alone, "
        "as is `fxfuse.repro(model, args, site=5)`. `verify=True` in the options leaves such a site as it was, with "
        "code VERIFY, and `FXFUSE_LIMIT=5` rewrites no more than the first five sites of a process.",
    ),
)

HEAD = """\
# Why was it not fused, and what now?

Three ways to the same report:

- `fxfuse explain train.py` runs a script and reports every compile in it; `fxfuse explain --hf NAME` looks at a model
  of transformers with random weights. `--only missed` and `--at model.layers.3.mlp` ask for a part, `--code` shows the
  lines before and after, `--html report.html` writes the page.
- `fxfuse.explain(model, args)` in Python; `print` it, or `report.save("report.html")`.
- `FXFUSE_REPORT_DIR=reports python train.py` writes text, JSON and page of each compile; `TORCH_LOGS="+fxfuse"` logs
  them; `TORCH_TRACE=folder` puts them beside torch's own artifacts, where `tlparse` lists them. `TORCH_LOGS="fxfuse"`
  is one line for each compile. `fxfuse.reports()` has the reports of this process; where none of these had asked
  before the compile, they hold the nodes of one site of each kind, and everything else of all.

`fxfuse diff a.json b.json` compares two saved reports and ends with exit code 1 where sites differ: an upgrade that
breaks a fusion is a failing test. `fxfuse.testing.assert_fused(model, args, expect={"rms_norm_gated_mlp": 30})` is one
in pytest.

The page is one file that needs no network. A site has a link of its own (`report.html#site-3` is `report.sites[3]`);
hovering a node marks it in the code before and after, in the drawing and in the source; `j` and `k` go from site to
site, `/` searches by operation, module, pattern, outcome or code, `g` shows the whole graph. The JSON is described by
`fxfuse/report/schema.json`.

A report that nobody reads is made of what was noted in passing. Noting it takes 1.1 % of the processor time that fxfuse
itself takes for 30 layers of Llama, all rewritten, and 0.9 % for 30 layers of OLMo2, all near misses; 1.9 % to 2.9 %
where a graph is nothing but sites (`python -m bench.debugging_cost`).

Every text below is what `python -m bench.debugging` prints, on tiny random models (`bench/debugging_models.py`); the
pictures are made by `python -m bench.debugging --pictures`. The codes are explained in [reasons.md](reasons.md).
"""


def section(number: int, situation: Situation) -> str:
    """One situation as Markdown."""
    shown = re.sub(r" \(\d+\.\d+ s\)", "", situation.shows())
    lines = [line for line in shown.splitlines() if not line.startswith("time: ")]
    parts = [
        f"## {number}. {situation.title}",
        _wrapped(situation.before),
        "```text\n" + "\n".join(lines).strip() + "\n```",
    ]
    if situation.picture:
        parts.append(f"![{situation.title}](pictures/{situation.picture}.png)")
    return "\n\n".join([*parts, _wrapped(f"What to do: {situation.does}")])


def _wrapped(prose: str) -> str:
    return textwrap.fill(prose, 120, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *(section(i, s) for i, s in enumerate(SITUATIONS, 1))]) + "\n"


def pictures() -> None:
    """A screenshot of the page for the situations that have one."""
    from playwright.sync_api import sync_playwright

    path = next(p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p)
    makes = {"router": mixed, "lora": lambda: Decoder([Lora() for _ in range(LAYERS)])}
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, make in makes.items():
            torch._dynamo.reset()
            with torch.no_grad():
                fxfuse.explain(make(), (batch(),), options=OPTIONS).save(f"{folder}/{name}.html")
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            opened.goto(f"file://{folder}/{name}.html")
            opened.wait_for_selector("#site svg")
            opened.locator("[data-side=before] .row.miss").hover()
            opened.screenshot(path=str(PICTURES / f"{name}.png"))
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    parser.add_argument("--pictures", action="store_true", help="make the pictures")
    given = parser.parse_args()
    if given.pictures:
        pictures()
    if given.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif not given.pictures:
        print(page())


if __name__ == "__main__":
    main()
