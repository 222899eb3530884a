"""A language task with known likelihoods, and what every language model must satisfy.

Shape legend: B rows, P prompts, L prompt tokens, T answer tokens, V vocabulary, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from proxygap.base.language import Answers, Enumeration, Float64, Generation, Items, ItemSpec, token_log_probs
from proxygap.base.protocols import LanguageModel
from proxygap.base.records import Int64

PAD, END = 0, 1


class MarkovTask:
    """Each answer token depends on the one before it by a known table, so that the best likelihood is known.

    The first token depends on the prompt's last. Prompts have 1 to ``prompt_length`` tokens; an answer ends with token
    1, drawn with probability ``end`` after each token, or at ``max_tokens``. Gold counts token 2.
    """

    name = "Markov"
    end_token: int | None = END

    def __init__(self, words: int = 6, prompt_length: int = 3, max_tokens: int = 8, end: float = 0.2) -> None:
        rng = np.random.default_rng(0)
        self.item_spec = ItemSpec(words + 2, PAD, prompt_length, max_tokens)
        self.next_VV = np.zeros((words + 2, words + 2))
        self.next_VV[2:, 2:] = (1 - end) * rng.dirichlet(np.full(words, 0.3), size=words)
        self.next_VV[2:, END] = end
        lengths = 1 + np.arange(words) % prompt_length
        self._prompt_PL = np.full((words, prompt_length), PAD, np.int64)
        for row, length in enumerate(lengths):
            self._prompt_PL[row, prompt_length - length :] = rng.integers(2, words + 2, size=length)
        self._prompt_PL[:, -1] = 2 + np.arange(words)

    def prompt_tokens(self) -> Int64:
        """As many prompts as words, each ending with its own."""
        return self._prompt_PL.copy()

    def demonstrations(self, rng: np.random.Generator, count: int) -> Answers:
        """Answers of the chain itself."""
        prompt_B = rng.integers(len(self._prompt_PL), size=count)
        token_BT = np.full((count, self.item_spec.max_tokens), PAD, np.int64)
        last_B, length_B = self._prompt_PL[prompt_B, -1], np.zeros(count, np.int64)
        for column in range(self.item_spec.max_tokens):
            going_B = last_B != END
            sums_BV = self.next_VV[last_B].cumsum(axis=1)
            drawn_B = (sums_BV < rng.random((count, 1)) * sums_BV[:, -1:]).sum(axis=1)
            last_B = np.where(going_B, drawn_B, END)
            token_BT[:, column] = np.where(going_B, drawn_B, PAD)
            length_B += going_B
        return Answers(prompt_B, token_BT, length_B, np.zeros(token_BT.shape, np.float32))

    def loss(self, answers: Answers) -> float:
        """The chain's own negative log-likelihood of answers, in nats per token: no model can do better on average."""
        before_BT = np.column_stack([self._prompt_PL[answers.prompt_B, -1], answers.token_BT[:, :-1]])
        return float(-np.log(self.next_VV[before_BT, answers.token_BT][answers.mask_BT]).mean())

    def gold(self, answers: Answers) -> Float64:
        """How often token 2 occurs."""
        count_B: Float64 = ((answers.token_BT == 2) & answers.mask_BT).sum(axis=1).astype(np.float64)
        return count_B

    def items(self, answers: Answers) -> Items:
        """Prompts and tokens."""
        prompt_BL = self._prompt_PL[answers.prompt_B]
        return {
            "prompt": answers.prompt_B,
            "prompt_token": prompt_BL,
            "token": answers.token_BT,
            "length": answers.length_B,
        }

    def styles(self, answers: Answers) -> dict[str, Float64]:
        """Length only."""
        return {"length": answers.length_B.astype(np.float64)}

    def text(self, answers: Answers) -> list[tuple[str, str]]:
        """Token numbers."""
        rows = zip(self._prompt_PL[answers.prompt_B], answers.token_BT, answers.length_B, strict=True)
        return [(" ".join(map(str, prompt)), " ".join(map(str, token[:length]))) for prompt, token, length in rows]

    def enumeration(self) -> Enumeration | None:
        """None: there are too many answers."""
        return None


def check_language_model(
    build: Callable[[], nn.Module],
    prompt_PL: Tensor,
    *,
    max_tokens: int,
    vocabulary: int,
    end_token: int | None,
    pad_token: int = PAD,
) -> None:
    """Run every clause below; ``build`` gives equal models each time, ``prompt_PL`` are at least two prompts."""
    prompt_BL = prompt_PL.repeat(7, 1)
    model = as_model(build())
    check_continuation(model, prompt_BL, max_tokens, vocabulary)
    check_causality(model, prompt_BL, max_tokens, vocabulary)
    for temperature in (1.0, 0.5, 2.0):
        check_generation(model, prompt_BL, max_tokens, end_token, pad_token, temperature)
    check_padding_is_not_read(model, prompt_BL, max_tokens, pad_token)
    check_frequencies(model, prompt_PL[:1], max_tokens)
    check_purity(model, prompt_BL, max_tokens)
    check_threads(model, prompt_BL, max_tokens)
    check_same_seed_same_model(build(), build())


def as_model(module: nn.Module) -> LanguageModel:
    """The module under its protocol; `forward` is `continuation`."""
    return cast(LanguageModel, module)


def check_continuation(model: LanguageModel, prompt_BL: Tensor, max_tokens: int, vocabulary: int) -> None:
    """Shapes for 0, 1 and all rows; a call of the module is `continuation`; gradients are finite and not all zero."""
    module = cast(nn.Module, model)
    for rows in (0, 1, len(prompt_BL)):
        token_BT = _tokens(rows, max_tokens, vocabulary)
        view = model.continuation(prompt_BL[:rows], token_BT)
        assert view.logits_BTV.shape == (rows, max_tokens, vocabulary)
        assert view.hidden_BTD.shape[:2] == (rows, max_tokens)
        assert bool(view.logits_BTV.isfinite().all())
        assert torch.equal(view.logits_BTV, module(prompt_BL[:rows], token_BT).logits_BTV)
    length_B = torch.full((len(prompt_BL),), max_tokens)
    module.zero_grad()
    token_log_probs(view.logits_BTV, token_BT, length_B).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool((gradient != 0).any()) for gradient in gradients)
    module.zero_grad()


@torch.no_grad()
def check_causality(model: LanguageModel, prompt_BL: Tensor, max_tokens: int, vocabulary: int) -> None:
    """A token has no say in the logits that predict it or those before it; batch mates have none at all."""
    token_BT = _tokens(len(prompt_BL), max_tokens, vocabulary)
    logits_BTV = model.continuation(prompt_BL, token_BT).logits_BTV
    for column in range(max_tokens):
        changed_BT = token_BT.clone()
        changed_BT[:, column:] = (changed_BT[:, column:] + 1) % vocabulary
        others_BTV = model.continuation(prompt_BL, changed_BT).logits_BTV
        torch.testing.assert_close(others_BTV[:, : column + 1], logits_BTV[:, : column + 1], rtol=1e-5, atol=1e-5)
    alone_BTV = torch.cat(
        [
            model.continuation(prompt_BL[row : row + 1], token_BT[row : row + 1]).logits_BTV
            for row in range(len(prompt_BL))
        ]
    )
    torch.testing.assert_close(alone_BTV, logits_BTV, rtol=1e-5, atol=1e-5)


def check_generation(
    model: LanguageModel,
    prompt_BL: Tensor,
    max_tokens: int,
    end_token: int | None,
    pad_token: int,
    temperature: float,
) -> None:
    """Well-formed answers, whose log-probabilities are those that `continuation` gives, at any temperature."""
    for tokens in sorted({1, max_tokens}):
        generator = torch.Generator().manual_seed(tokens)
        drawn = model.generate(prompt_BL, tokens, generator=generator, temperature=temperature)
        check_answers(drawn, len(prompt_BL), tokens, end_token, pad_token)
        with torch.no_grad():
            view = model.continuation(prompt_BL, drawn.token_BT)
        given_BT = token_log_probs(view.logits_BTV, drawn.token_BT, drawn.length_B)
        torch.testing.assert_close(drawn.log_prob_BT, given_BT, rtol=1e-5, atol=1e-5)
    none = model.generate(prompt_BL[:0], max_tokens, generator=torch.Generator().manual_seed(0))
    assert none.token_BT.shape == none.log_prob_BT.shape == (0, max_tokens)


def check_answers(drawn: Generation, rows: int, tokens: int, end_token: int | None, pad_token: int) -> None:
    """Full width; padding and zeros after the length; an end token only as the last, and always if shorter."""
    assert drawn.token_BT.shape == drawn.log_prob_BT.shape == (rows, tokens)
    assert drawn.token_BT.dtype == drawn.length_B.dtype == torch.int64
    for token_T, length, log_prob_T in zip(drawn.token_BT, drawn.length_B.tolist(), drawn.log_prob_BT, strict=True):
        assert 1 <= length <= tokens
        assert bool((token_T[length:] == pad_token).all())
        assert bool((log_prob_T[length:] == 0).all())
        assert bool((log_prob_T[:length] <= 0).all())
        if end_token is None:
            assert length == tokens
        else:
            assert bool((token_T[: length - 1] != end_token).all())
            assert length == tokens or int(token_T[length - 1]) == end_token


@torch.no_grad()
def check_padding_is_not_read(model: LanguageModel, prompt_BL: Tensor, max_tokens: int, pad_token: int) -> None:
    """One more column of padding on the left, one token less to answer: the same logits, the same answers."""
    tokens = max(1, max_tokens - 1)
    wider_BL = torch.cat((torch.full_like(prompt_BL[:, :1], pad_token), prompt_BL), dim=1)
    drawn, wider = (
        model.generate(prompt, tokens, generator=torch.Generator().manual_seed(3)) for prompt in (prompt_BL, wider_BL)
    )
    assert torch.equal(drawn.token_BT, wider.token_BT)
    torch.testing.assert_close(drawn.log_prob_BT, wider.log_prob_BT, rtol=1e-5, atol=1e-5)
    logits, wider_logits = (model.continuation(prompt, drawn.token_BT).logits_BTV for prompt in (prompt_BL, wider_BL))
    torch.testing.assert_close(logits, wider_logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def check_frequencies(model: LanguageModel, prompt_1L: Tensor, max_tokens: int, rows: int = 8192) -> None:
    """First tokens come as often as the logits say, at temperatures 1 and 0.5: chi-square within 6 deviations."""
    logits_V = model.continuation(prompt_1L, torch.zeros(1, max_tokens, dtype=torch.int64)).logits_BTV[0, 0]
    for temperature in (1.0, 0.5):
        probability_V = (logits_V.double() / temperature).softmax(dim=-1)
        generator = torch.Generator().manual_seed(1)
        drawn = model.generate(prompt_1L.expand(rows, -1), 1, generator=generator, temperature=temperature)
        count_V = torch.bincount(drawn.token_BT[:, 0], minlength=len(logits_V)).double()
        likely_V = probability_V * rows >= 5
        chi_square = ((count_V - rows * probability_V).square() / (rows * probability_V))[likely_V].sum()
        degrees = int(likely_V.sum())
        assert float(chi_square) < degrees + 6 * (2 * degrees) ** 0.5
        rare = rows * float(probability_V[~likely_V].sum())
        assert abs(float(count_V[~likely_V].sum()) - rare) < 6 * (rare + 1) ** 0.5


def check_purity(model: LanguageModel, prompt_BL: Tensor, max_tokens: int) -> None:
    """Equal generators give equal answers, another gives others; no global generator moves; prompts stay; no graph."""
    before_BL, torch_state, numpy_state = prompt_BL.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    one, two, three = (
        model.generate(prompt_BL, max_tokens, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one.token_BT, two.token_BT)
    assert torch.equal(one.log_prob_BT, two.log_prob_BT)
    assert not torch.equal(one.token_BT, three.token_BT)
    assert torch.equal(before_BL, prompt_BL)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    for tensor in (one.token_BT, one.length_B, one.log_prob_BT):
        assert not tensor.requires_grad
        assert not tensor.is_inference()


def check_threads(model: LanguageModel, prompt_BL: Tensor, max_tokens: int) -> None:
    """Four threads that generate at once get what each would alone."""

    def answer(seed: int) -> Tensor:
        return model.generate(prompt_BL, max_tokens, generator=torch.Generator().manual_seed(seed)).token_BT

    found: dict[int, Tensor] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: answer(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], answer(seed)) for seed in range(4))


def check_same_seed_same_model(one: nn.Module, two: nn.Module) -> None:
    """Building twice gives the same weights, bit for bit."""
    weights, others = one.state_dict(), two.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def _tokens(rows: int, tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(9))
