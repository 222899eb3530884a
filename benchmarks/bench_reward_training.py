"""Reward-model training, pairs per second: ours and TRL's RewardTrainer, interleaved in one run on one thread.

Both train the same Hugging Face Llama (vocabulary 64, width 64, MLP 256, 2 layers, 4 heads) on the same pairs of 33
tokens (8 of prompt, 24 of answer, the end), batch 32 and batch 4, with gradient clipping at 1 and centering 0.01; a
third row has our own transformer of the same sizes. Then an ensemble of 5 of ours trained at once, beside one member:
at these sizes, and at those of the studies (1 layer, width 32, 13 tokens).

TRL is timed from the end of its first steps to the end of training, so that its set-up does not count. Ours is the
difference between a long and a short fit, for the same reason.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import logging
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from datasets import disable_progress_bars as disable_dataset_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from trl import RewardConfig, RewardTrainer

from measure import Bound, Ratio, report
from proxygap.base.language import ItemSpec, Preferences
from proxygap.fit.reward.settings import HuggingFaceNetwork, RewardTraining, TinyNetwork, TransformerReward

VOCABULARY, PROMPT, ANSWER, WARMUP, ROUNDS = 64, 8, 25, 4, 3
SPEC = ItemSpec(vocabulary=VOCABULARY, pad_token=0, prompt_length=PROMPT, max_tokens=ANSWER)
SIZES: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "feedforward": 256}
STEPS = {32: 30, 4: 160}
STUDY, STUDY_SPEC = TinyNetwork(), ItemSpec(vocabulary=VOCABULARY, prompt_length=1, max_tokens=12)


def pairs(count: int) -> Preferences:
    """Random tokens, end token last, as both sides get them."""
    rng = np.random.default_rng(0)
    prompt_NL = rng.integers(4, VOCABULARY, (count, PROMPT))

    def answers() -> dict[str, np.ndarray]:
        token_NT = rng.integers(4, VOCABULARY, (count, ANSWER))
        token_NT[:, -1] = 2
        return {"prompt_token": prompt_NL, "token": token_NT, "length": np.full(count, ANSWER)}

    ones, unrated = np.ones(count, np.float32), np.full(count, np.nan, np.float32)
    return Preferences(answers(), answers(), np.zeros(count, bool), ones, np.zeros(count, np.int64), unrated, unrated)


def tokenizer() -> PreTrainedTokenizerFast:
    names = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"t{index}": index for index in range(4, VOCABULARY)}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


class Clock(TrainerCallback):
    """CPU seconds of the steps after the warm-up."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002
        if state.global_step == WARMUP:
            self.started = time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002
        self.per_step = (time.process_time() - self.started) / (state.global_step - WARMUP)


def trl_rate(batch: int) -> float:
    """Pairs per CPU second of `RewardTrainer`."""
    data, names = pairs(batch * STEPS[batch]), tokenizer()

    def texts(items: Any) -> list[str]:
        whole = np.concatenate([items["prompt_token"], items["token"][:, :-1]], axis=1)  # TRL adds the end token
        return [" ".join(f"t{token}" for token in row) for row in whole]

    rows = [{"chosen": a, "rejected": b} for a, b in zip(texts(data.chosen), texts(data.rejected), strict=True)]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZES["width"],
        intermediate_size=SIZES["feedforward"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["heads"],
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=STEPS[batch],
            max_length=64,
            center_rewards_coefficient=0.01,
            learning_rate=1e-3,
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
        trainer = RewardTrainer(
            model=LlamaForSequenceClassification(config),
            processing_class=names,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
        tokens = {len(row["chosen_ids"]) for row in trainer.train_dataset}
        assert tokens == {PROMPT + ANSWER}, tokens
        trainer.train()
    return batch / clock.per_step


def our_rate(batch: int, network: HuggingFaceNetwork | TinyNetwork, members: int = 1) -> float:
    """Pairs per CPU second of training; each member's pairs count once."""
    data = pairs(batch * STEPS[batch])
    training = RewardTraining(epochs=1, batch_size=batch, held_out=8 / len(data))
    settings = TransformerReward(members=members, network=network, training=training)
    model = settings.build(SPEC if network is not STUDY else STUDY_SPEC, seed=0)

    def fitted(part: Preferences) -> tuple[int, float]:
        started = time.process_time()
        rows = model.fit(part if network is not STUDY else shortened(part)).training_rows
        return rows, time.process_time() - started

    (few, short), (many, long) = fitted(data[: WARMUP * batch]), fitted(data)
    return (many - few) / (long - short)


def shortened(data: Preferences) -> Preferences:
    """The same pairs with one token of prompt and twelve of answer."""

    def short(items: Any) -> dict[str, np.ndarray]:
        count = len(items["length"])
        return {
            "prompt_token": items["prompt_token"][:, :1],
            "token": items["token"][:, -12:],
            "length": np.full(count, 12),
        }

    return replace(data, chosen=short(data.chosen), rejected=short(data.rejected))


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_dataset_bars()
    same, own = HuggingFaceNetwork(**SIZES), TinyNetwork(**SIZES)
    subjects: dict[str, Any] = {}
    for batch in STEPS:
        subjects |= {
            f"trl, batch {batch}": lambda batch=batch: trl_rate(batch),
            f"ours, same module, batch {batch}": lambda batch=batch: our_rate(batch, same),
            f"ours, own transformer, batch {batch}": lambda batch=batch: our_rate(batch, own),
        }
        subjects[f"5 of our own, batch {batch}"] = lambda batch=batch: our_rate(batch, own, members=5)
    subjects |= {
        "study, 1 member": lambda: our_rate(32, STUDY),
        "study, 5 members": lambda: our_rate(32, STUDY, members=5),
    }
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for round_number in range(ROUNDS + 1):
        for name in list(subjects) if round_number % 2 else list(reversed(subjects)):
            rate = subjects[name]()
            if round_number:
                samples[name].append(rate)
    both = {
        "cost of 5, study": ("study, 1 member", "study, 5 members"),
        "cost of 5, batch 4": ("ours, own transformer, batch 4", "5 of our own, batch 4"),
        "cost of 5, batch 32": ("ours, own transformer, batch 32", "5 of our own, batch 32"),
    }
    cost = {
        name: [a / b for a, b in zip(samples[one], samples[five], strict=True)] for name, (one, five) in both.items()
    }
    met = report(
        "reward_training",
        unit="pairs/s, or a ratio of them",
        samples={**samples, **cost},
        claims=[
            Ratio("ours, same module, batch 32", "trl, batch 32", 1.05),
            Ratio("ours, same module, batch 4", "trl, batch 4", 1.2),
            Ratio("ours, own transformer, batch 32", "trl, batch 32", 1.05),
            Bound("cost of 5, study", 4.0),
            Bound("cost of 5, batch 4", 4.0),
            Bound("cost of 5, batch 32", 4.0),
        ],
        details={
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "tokens per item": PROMPT + ANSWER,
            "best of each": {name: round(max(each), 1) for name, each in samples.items()},
            "spread": {
                name: round(statistics.pstdev(each) / statistics.mean(each), 3) for name, each in samples.items()
            },
        },
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
