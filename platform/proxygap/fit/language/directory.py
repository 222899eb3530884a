"""Loading a causal language model from a local directory, and refusing what must not be loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from proxygap.base.errors import CheckpointRefused, InvalidExperiment

_LOADING = threading.Lock()  # transformers changes the default dtype and its verbosity while it loads
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def loaded(directory: str, dtype: str) -> PreTrainedModel:
    """The model of a directory, complete, without dropout, on the CPU, in eval mode.

    Nothing is downloaded, unpickled, or run from the directory.

    Raises:
        InvalidExperiment: not a directory with a configuration and safetensors of a causal language model.
        CheckpointRefused: a truncated file; tensors that are missing, unexpected, or of another shape.
    """
    folder = Path(directory)
    _check_files(folder)
    config = _configuration(folder)
    for name in [name for name in config.to_dict() if _is_dropout(name, getattr(config, name, None))]:
        setattr(config, name, 0.0)  # a policy that forgets at random is not the one that generated
    try:
        with _LOADING, _quiet():
            network, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told in `found`, and refused below
                output_loading_info=True,
            )
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged(folder, str(error)) from error
    except ValueError as error:
        raise _refusal(folder, f"transformers has no causal language model for it: {error}") from error
    _check_complete(folder, found)
    return network.eval()


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise _refusal(folder, "there is no such directory")
    if not (folder / "config.json").is_file():
        raise _refusal(folder, "there is no config.json in this directory")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        problem = f"its weights are pickled ({', '.join(pickled[:4])}), and reading them could run any program"
        raise _refusal(folder, problem, "Convert them with save_pretrained where you trust them")
    raise _refusal(folder, "there are no *.safetensors in this directory")


def _configuration(folder: Path) -> PretrainedConfig:
    try:
        with _LOADING, _quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise _refusal(folder, f"its config.json cannot be used: {error}") from error


def _is_dropout(name: str, value: object) -> bool:
    return ("drop" in name) and isinstance(value, float)


def _check_complete(folder: Path, found: dict[str, set[object]]) -> None:
    """Raise for weights that transformers only warns about."""
    problems = {
        kind: sorted(map(str, found.get(f"{kind}_keys", ()))) for kind in ("missing", "unexpected", "mismatched")
    }
    told = "; ".join(f"{kind}: {', '.join(names[:8])}" for kind, names in problems.items() if names)
    if told:
        raise _damaged(folder, told)


def _damaged(folder: Path, told: str) -> CheckpointRefused:
    remedy = "Save the model again with save_pretrained, or correct its config.json"
    return CheckpointRefused(
        f"the weights are not those of the model ({told})", field="directory", value=str(folder), remedy=remedy
    )


def _refusal(folder: Path, problem: str, remedy: str = "") -> InvalidExperiment:
    remedy = remedy or "Give a local folder as save_pretrained writes it: config.json and *.safetensors"
    return InvalidExperiment(problem, field="directory", value=str(folder), remedy=remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports and no progress bars of transformers within; what was set before is set again after."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
