"""Answer tokens per second, end to end, of GRPO and RLOO: ours and TRL's, taking turns in one process on one thread.

32 answers of at most 24 tokens a step (4 prompts of 8 tokens, groups of 8), vocabulary 64, a Llama of 2 layers and
width 64, one gradient step per batch, KL coefficient 0.04, gradient clipping, entropy and KL recorded. Ours loads the
very folder that TRL loads; a second row has our own transformer of equal sizes. Generation, log-probabilities of the
reference, rewards, advantages and the update are all in the time; building models and the first steps are not. TRL also
turns texts into tokens and back; ours has tokens all along, as its tasks do. CPU time of the process counts.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.sac import SACConfig

from measure import Ratio, report
from proxygap.base.language import Answers, ItemSpec, token_log_probs
from proxygap.collect.answer_runner import AnswerRunner
from proxygap.fit.language.settings import HuggingFaceLanguageModel, TinyTransformerLanguageModel
from proxygap.optimize.language.learner import LanguageLearner
from proxygap.optimize.language.module import LanguageModule
from proxygap.optimize.language.settings import Grpo, Kl, Rloo
from proxygap.rllib import RLModuleSpec, learner_batch

VOCABULARY, PROMPTS, PROMPT, ANSWER, GROUP, BATCH = 64, 512, 8, 24, 8, 32
PAD, END, WANTED = 0, 2, 7
WARM_UP, STEPS, REPEATS = 3, 12, 5
RATE, BETA = 1e-4, 0.04
SHARED: dict[str, Any] = {
    "prompts_per_iteration": BATCH // GROUP,
    "answers_per_prompt": GROUP,
    "learning_rate": RATE,
}
OURS = {
    "GRPO": Grpo(aggregation="token_mean", kl=Kl(place="loss", estimator="k3", coefficient=BETA), **SHARED),
    "RLOO": Rloo(kl=Kl(coefficient=BETA), **SHARED),
}


@dataclass(frozen=True)
class Prompts:
    """As much of a task as a runner asks for."""

    table_PL: np.ndarray

    @property
    def item_spec(self) -> ItemSpec:
        return ItemSpec(vocabulary=VOCABULARY, pad_token=PAD, prompt_length=PROMPT, max_tokens=ANSWER)

    def prompt_tokens(self) -> np.ndarray:
        return self.table_PL


class Turn:
    """Tokens and CPU seconds of one turn of a subject, without its first steps."""

    def __init__(self) -> None:
        self.tokens = self.answers = 0
        self.started = self.seconds = 0.0

    def rate(self) -> float:
        return self.tokens / self.seconds


Subject = Callable[[], Turn]


def ours(settings: Grpo | Rloo, model: Any) -> Subject:
    """The `language_rl` loop's calls on one iteration, through RLlib's LearnerGroup."""
    task = Prompts(np.random.default_rng(0).integers(4, VOCABULARY, (PROMPTS, PROMPT)))
    space = gym.spaces.Discrete(1)
    options = {
        "model": model,
        "spec": task.item_spec,
        "end_token": END,
        "prompts": PROMPTS,
        "seed": 0,
        "value_head": False,
    }
    module = RLModuleSpec(
        module_class=LanguageModule, observation_space=space, action_space=space, model_config=options
    )
    runner_options = {"task": task, "seed": 0, "threads": 1, "temperature": 1.0}
    config = SACConfig().environment(observation_space=space, action_space=space, env_config=runner_options)
    config.rl_module(rl_module_spec=module).learners(learner_class=LanguageLearner, num_learners=0)
    config.learners(learner_config_dict={"settings": settings, "seed": 0})
    group = config.build_learner_group(
        rl_module_spec=config.copy().get_multi_rl_module_spec(spaces={"default_policy": (space, space)})
    )
    learner, runner = group._learner, AnswerRunner(config=config.copy())
    runner.module = learner.networks
    reference, start = copy.deepcopy(learner.networks.model), learner.part_state()
    rng = np.random.default_rng(1)

    def step() -> Answers:
        answers = runner.sample(prompt_B=rng.choice(PROMPTS, BATCH // GROUP, replace=False).repeat(GROUP))
        prompt_token = task.table_PL[answers.prompt_B]
        token, length = torch.from_numpy(answers.token_BT), torch.from_numpy(answers.length_B)
        with torch.inference_mode():
            logits = reference.continuation(torch.from_numpy(prompt_token), token).logits_BTV
            reference_log_prob = token_log_probs(logits, token, length).numpy()
        columns = {
            "prompt_token": prompt_token,
            "token": answers.token_BT,
            "length": answers.length_B,
            "log_prob": answers.log_prob_BT,
            "reference_log_prob": reference_log_prob,
            "proxy_reward": ((answers.token_BT == WANTED) & answers.mask_BT).sum(axis=1).astype(np.float32),
            "group": answers.prompt_B,
        }
        group.update(batch=learner_batch(columns, BATCH))
        return answers

    def run() -> Turn:
        learner.load_part_state(start)
        turn = Turn()
        for index in range(WARM_UP + STEPS):
            if index == WARM_UP:
                turn.started = time.process_time()
            answers = step()
            if index >= WARM_UP:
                turn.tokens, turn.answers = turn.tokens + int(answers.length_B.sum()), turn.answers + BATCH
        turn.seconds = time.process_time() - turn.started
        return turn

    return run


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"t{i}": i + 4 for i in range(VOCABULARY - 4)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **special)


def save_llama(folder: Path) -> None:
    """The module of both sides: random weights, with a tokenizer for TRL."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=END,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def trl(kind: str, folder: Path) -> Subject:
    """TRL's trainer as its documentation calls it; the clock is a callback's."""
    import trl as peer
    from datasets import Dataset
    from transformers import TrainerCallback

    trainer_class, config_class = {
        "GRPO": (peer.GRPOTrainer, peer.GRPOConfig),
        "RLOO": (peer.RLOOTrainer, peer.RLOOConfig),
    }[kind]
    rng, words = np.random.default_rng(0), tokenizer()
    prompts = [
        {"prompt": " ".join(f"t{i}" for i in rng.integers(0, VOCABULARY - 4, PROMPT)) + " "} for _ in range(PROMPTS)
    ]

    def run() -> Turn:
        turn = Turn()

        class Clock(TrainerCallback):
            def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP:
                    turn.started, turn.tokens, turn.answers = time.process_time(), 0, 0

            def on_train_end(self, *_: Any, **__: Any) -> None:
                turn.seconds = time.process_time() - turn.started

        def wanted(*, completion_ids: Any, **_: Any) -> list[float]:
            turn.tokens += sum(map(len, completion_ids))
            turn.answers += len(completion_ids)
            return [float(ids.count(WANTED)) for ids in completion_ids]

        with tempfile.TemporaryDirectory() as output, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = config_class(
                output_dir=output,
                per_device_train_batch_size=BATCH,
                num_generations=GROUP,
                max_completion_length=ANSWER,
                max_steps=WARM_UP + STEPS,
                beta=BETA,
                temperature=1.0,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                report_to="none",
                save_strategy="no",
                logging_steps=10_000,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                disable_tqdm=True,
                seed=0,
            )
            trainer = trainer_class(
                model=str(folder),
                reward_funcs=wanted,
                processing_class=words,
                args=options,
                train_dataset=Dataset.from_list(prompts),
                callbacks=[Clock()],
            )
            trainer.train()
        return turn

    return run


def subject(name: str, folder: Path) -> Subject:
    kind, side = name.split(", ", 1)
    if side == "TRL":
        return trl(kind, folder)
    tiny = TinyTransformerLanguageModel(layers=2, width=64, heads=4, feed_forward=4)
    same = HuggingFaceLanguageModel(directory=str(folder))
    return ours(OURS[kind], tiny if side == "our transformer" else same)


NAMES = [f"{kind}, {side}" for kind in OURS for side in ("same module", "our transformer", "TRL")]


def peak_mib(name: str, folder: Path) -> float:
    """Largest memory of a process that does nothing else than one turn."""
    command = [sys.executable, __file__, "--alone", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def own_peak_mib() -> int:
    """Linux's high-water mark; that of getrusage would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def take_turns(subjects: Mapping[str, Subject]) -> dict[str, list[Turn]]:
    """Every subject once in each round, after a round of warm-up; the order turns around from round to round."""
    turns: dict[str, list[Turn]] = {name: [] for name in subjects}
    for round_number in range(REPEATS + 1):
        for name in list(subjects) if round_number % 2 else list(reversed(subjects)):
            turn = subjects[name]()
            if round_number:
                turns[name].append(turn)
    return turns


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "torch", "ray", "accelerate", "datasets")}


def main() -> bool:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder)
        turns = take_turns({name: subject(name, folder) for name in NAMES})
        peaks = {name: peak_mib(name, folder) for name in NAMES}
    claims = [
        Ratio(f"{kind}, {side}", f"{kind}, TRL", at_least=bound)
        for kind in OURS
        for side, bound in (("same module", 1.8), ("our transformer", 2.5))
    ]
    details = {
        "versions": versions(),
        "tokens_per_answer": {
            name: round(sum(t.tokens for t in each) / sum(t.answers for t in each), 2) for name, each in turns.items()
        },
        "peak_mib": peaks,
    }
    for title, values in (("tokens per answer", details["tokens_per_answer"]), ("peak memory, MiB", peaks)):
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    rates = {name: [turn.rate() for turn in each] for name, each in turns.items()}
    return report("language_rl", unit="tokens/s", samples=rates, claims=claims, details=details)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        torch.set_num_threads(1)
        subject(sys.argv[2], Path(sys.argv[3]))()
        print(own_peak_mib())
    else:
        sys.exit(not main())
