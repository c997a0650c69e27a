"""A third party's pack: one pattern, a Triton and a CPU kernel, chosen by device, in three families of models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.examples.packs import answer, environment, install, run

pytest.importorskip("transformers")
pytest.importorskip("triton", reason="Triton is an extra, and brought by some builds of torch only")

FAMILIES = {"LlamaConfig": "silu", "Qwen3Config": "silu", "GemmaConfig": "gelu_tanh"}

MODELS = """
import json, sys, torch, transformers, fxfuse
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
tokens = torch.randint(1, 97, (2, 5), device=device)
add = {"add": ["activations::gated_product"], "drop": ["rms_norm_gated_mlp"]}

def tiny(config, dtype=torch.float32):
    made = getattr(transformers, config)(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=None,
        eos_token_id=None)
    return transformers.AutoModelForCausalLM.from_config(made, dtype=dtype).eval().to(device)

def logits(model):
    return model(tokens, use_cache=False).logits

def sites(config, dtype=torch.float32, **options):
    torch._dynamo.reset()
    model = tiny(config, dtype)
    exact = logits(tiny(config).double()) if dtype is torch.float32 else None
    options = {**add, "inner": "aot_eager", "on_error": "raise", **options}
    with torch.no_grad():
        fast, eager = logits(torch.compile(model, backend="fxfuse", options=options)), logits(model)
    off = ((fast - eager).double().norm() / eager.double().norm()).item()
    assert off < {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype], off
    found = [s for s in fxfuse.reports()[-1].sites if s.pattern == "gated_product"]
    assert all(s.outcome == "rewritten" for s in found), found
    return [[s.kernel, s.variant["act"], list(s.modules)] for s in found], "triton" in str(sorted(sys.modules))
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    install(Path(__file__).parent / "activations", folder / "site", folder / "build")
    return folder / "site"


def expected(kernel: str, act: str) -> list[list[object]]:
    return [[kernel, act, [f"model.layers.{i}.mlp"]] for i in range(3)]


def test_sites_in_three_families_get_the_kernel_of_their_device(pack: Path) -> None:
    script = f"""{MODELS}
found = {{config: sites(config)[0] for config in {list(FAMILIES)}}}
loaded = "fxfuse_activations.triton.gated_product" in sys.modules
print(json.dumps([device, found, loaded]))
"""
    device, found, loaded = answer(script, pack)
    assert found == {config: expected(f"on_{device}", act) for config, act in FAMILIES.items()}
    assert loaded == (device == "cuda"), "an implementation for another device is never imported"


def test_the_triton_kernel_in_three_families(pack: Path) -> None:
    """In the interpreter, where it runs on the CPU when it is named."""
    script = f"""{MODELS}
wish = {{"kernels": {{"gated_product": "on_cuda"}}}}
found = {{c: [sites(c, d, **wish)[0] for d in (torch.float32, torch.bfloat16)] for c in {list(FAMILIES)}}}
print(json.dumps(found))
"""
    found = answer(script, pack, TRITON_INTERPRET="1")
    assert found == {config: [expected("on_cuda", act)] * 2 for config, act in FAMILIES.items()}


def test_which_kernel_each_device_gets_and_why_not_the_other(pack: Path) -> None:
    script = """
import json, torch, fxfuse
from fxfuse.kernels import SiteFacts, candidates, choose
from fxfuse_activations.gated_product import gated_product
import fxfuse_activations.kernels

def ask(device, capability, **more):
    facts = SiteFacts(device=device, capability=capability, dtype=torch.bfloat16, rows=8, variant={"act": "silu"},
                      present=frozenset({"gate", "up"}), symbolic_scalars=frozenset(), needs_grad=False, **more)
    made, _ = choose(gated_product, facts, derived=False)
    return made.name if made else "", {m.name: why for m, why in candidates(gated_product, facts) if why}

print(json.dumps([ask("cpu", None), ask("cuda", (9, 0)), ask("cuda", (7, 5))]))
"""
    cpu, hopper, turing = answer(script, pack)
    assert cpu == ["on_cpu", {"on_cuda": "needs a cuda device; the site is on cpu"}]
    assert hopper == ["on_cuda", {"on_cpu": "needs a cpu device; the site is on cuda"}]
    assert turing[0] == ""
    assert turing[1]["on_cuda"] == "needs compute capability 8.0 to 99.9; found 7.5"


def test_it_passes_fxfuse_check_and_doctor_sees_it(pack: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "fxfuse.cli"]
    checked = run([*command, "check", "activations", "--quick"], env=environment(pack, TRITON_INTERPRET="1"), cwd=pack)
    assert "1 of 1 patterns passed" in checked.stdout
    told = json.loads(run([*command, "doctor", "--json"], env=environment(pack), cwd=pack).stdout)
    assert told["packs"]["activations"] == {"module": "fxfuse_activations", "patterns": 1, "error": ""}
    kernels = told["patterns"]["activations::gated_product"]["kernels"]
    assert kernels["on_cpu"]["devices"]["cpu"]["state"] == "runs"
    assert kernels["on_cuda"]["devices"]["cpu"]["state"] == "cannot run"
