"""Answers drawn per second: our loops against `generate` of transformers, and training passes beside them.

The setting is that of the field's small comparisons: 32 prompts of 8 tokens, answers of up to 24 out of 64 tokens,
2 layers of width 64, 4 heads, float32, one thread. Rows "same module" hold one and the same Llama with the same
weights on both sides. The peer is called as TRL's trainers call it (sampling at temperature 1, its key-value cache),
and TRL reads each answer once more for log-probabilities, which ours come with; both ways of counting are reported.
Ours reads the prompt with the module's own forward and steps the answer by the module's equations and weights, without
the calls around them (`fit/language/llama_steps.py`); training passes go through the module's own forward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from measure import Ratio, interleaved, report
from proxygap.base.language import ItemSpec, token_log_probs
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.settings import HuggingFaceLanguageModel, TinyTransformerLanguageModel

ROWS, PROMPT, ANSWER, VOCABULARY, PAD, END = 32, 8, 24, 64, 0, 2
REPEATS, CALLS = 7, 6


class Subjects:
    """What takes turns; each call draws or reads ``CALLS`` batches and counts the answers' tokens."""

    def __init__(self) -> None:
        spec = ItemSpec(VOCABULARY, PAD, PROMPT, ANSWER)
        self.llama = HuggingFaceLanguageModel().build(spec, end_token=END, prompts=0, seed=0)
        self.tiny = TinyTransformerLanguageModel().build(spec, end_token=END, prompts=0, seed=0)
        self.generator = torch_generator(0, "bench")
        self.prompt_BL = torch.randint(3, VOCABULARY, (ROWS, PROMPT), generator=self.generator)
        self.ragged_BL = self.prompt_BL.clone()
        for row in range(ROWS):
            self.ragged_BL[row, : row % PROMPT] = PAD
        self.tokens: dict[str, list[int]] = {}

    def ours(self, model: torch.nn.Module, prompt_BL: torch.Tensor) -> int:
        drawn = model.generate(prompt_BL, ANSWER, generator=self.generator)
        return int(drawn.length_B.sum())

    def theirs(self, *, read_again: bool = False) -> int:
        """``generate``, and, where asked, the forward pass that gives its log-probabilities."""
        network = self.llama.network
        with torch.no_grad():
            mask_BS = torch.ones_like(self.prompt_BL)
            seen_BS = network.generate(
                self.prompt_BL,
                attention_mask=mask_BS,
                max_new_tokens=ANSWER,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=END,
                pad_token_id=PAD,
            )
            token_BT = seen_BS[:, PROMPT:]
            ended_BT = (token_BT == END).cumsum(dim=1) > 0
            length_B = (token_BT.shape[1] - ended_BT.sum(dim=1) + 1).clamp(max=token_BT.shape[1])
            if read_again:
                logits_BTV = network(seen_BS, logits_to_keep=token_BT.shape[1] + 1, use_cache=False).logits[:, :-1]
                token_log_probs(logits_BTV, token_BT, length_B)
        return int(length_B.sum())

    def trained(self, model: torch.nn.Module) -> int:
        """Forward and backward of the log-likelihood of full-length answers."""
        token_BT = torch.full((ROWS, ANSWER), 5)
        length_B = torch.full((ROWS,), ANSWER)
        view = model.continuation(self.prompt_BL, token_BT)
        model.zero_grad()
        token_log_probs(view.logits_BTV, token_BT, length_B).sum().backward()
        return ROWS * ANSWER

    def counted(self, name: str, once: Callable[[], int]) -> Callable[[], None]:
        def call() -> None:
            self.tokens.setdefault(name, []).append(sum(once() for _ in range(CALLS)))

        return call


def main() -> bool:
    torch.set_num_threads(1)
    subjects = Subjects()
    ways: dict[str, Callable[[], int]] = {
        "transformers generate": subjects.theirs,
        "generate and read again": lambda: subjects.theirs(read_again=True),
        "same module": lambda: subjects.ours(subjects.llama, subjects.prompt_BL),
        "same module, ragged": lambda: subjects.ours(subjects.llama, subjects.ragged_BL),
        "tiny transformer": lambda: subjects.ours(subjects.tiny, subjects.prompt_BL),
        "tiny transformer, ragged": lambda: subjects.ours(subjects.tiny, subjects.ragged_BL),
        "training, Llama": lambda: subjects.trained(subjects.llama),
        "training, tiny transformer": lambda: subjects.trained(subjects.tiny),
    }
    seconds = interleaved({name: subjects.counted(name, once) for name, once in ways.items()}, REPEATS)
    rates = {
        name: [count / each for count, each in zip(subjects.tokens[name][1:], seconds[name], strict=True)]
        for name in ways
    }
    claims = [
        Ratio("same module", "transformers generate", 1.8),
        Ratio("tiny transformer", "transformers generate", 3.0),
        Ratio("same module", "generate and read again", 1.8),
        Ratio("tiny transformer", "generate and read again", 3.0),
    ]
    parameters = {
        "Llama": sum(weight.numel() for weight in subjects.llama.parameters()),
        "tiny transformer": sum(weight.numel() for weight in subjects.tiny.parameters()),
    }
    details = {"rows": ROWS, "prompt": PROMPT, "answer": ANSWER, "vocabulary": VOCABULARY, "parameters": parameters}
    return report("generation", unit="tokens/s", samples=rates, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
