"""The text task: real sentences of the interpreter's own documentation, real scorers, no network."""

import hashlib
import socket
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from proxygap.base.errors import InvalidDataset, InvalidExperiment
from proxygap.base.language import Answers
from proxygap.base.seeds import generator
from proxygap.collect.tasks import corpus, text_lm
from proxygap.collect.tasks.text_lm import PAD, TextLm

PLEASANT, READABLE = TextLm(), TextLm(scorer="readability")


def answer_in(task, prompt, words):
    """One answer made of words of the vocabulary; a full stop ends it."""
    number = {word: token for token, word in enumerate(text_lm._read(task).spelling)}
    token_BT = np.array([[number[word] for word in words] + [PAD] * (task.max_tokens - len(words))])
    return Answers(np.array([prompt]), token_BT, np.array([len(words)]), np.zeros(token_BT.shape, np.float32))


def spread(task, count=500):
    return task.demonstrations(generator(0, "demonstrations"), count)


def spelled(task, row):
    return task.text(Answers(np.array([row]), *(a[:1] for a in (spread(task).token_BT, spread(task).length_B)), None))[
        0
    ][0]


def test_the_corpus_is_prose():
    every = corpus.sentences()
    assert len(every) == len(set(every)) > 3000
    words = {word for sentence in every for word in sentence}
    assert {"the", "return", "exception", "best"} <= words
    assert all(word.replace("'", "").isalpha() and word == word.lower() and word.isascii() for word in words)
    assert (
        "deletion",
        "of",
        "a",
        "target",
        "list",
        "recursively",
        "deletes",
        "each",
        "target",
        "from",
        "left",
        "to",
        "right",
    ) in every


def test_the_fingerprint_is_the_hash_of_the_sentences():
    text = "\n".join(" ".join(sentence) for sentence in corpus.sentences())
    assert corpus.fingerprint() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Go to the end of it. Stop here now.", [("go", "to", "the", "end", "of", "it"), ("stop", "here", "now")]),
        ("A *bold* word, a ``code`` word (and more).", [("a", "bold", "word", "a", "code", "word")]),
        ("The value is x2 or 3. It's the module's own.", [("it's", "the", "module's", "own")]),
        (">>> Not this.\n\n  Only\n  this.", [("only", "this")]),
        ("no capital.", []),
        ("No full stop", []),
    ],
)
def test_sentences_are_cut_out_of_a_text(text, expected):
    assert list(corpus._sentences_of(text)) == expected


def test_demonstrations_are_sentences_of_the_corpus():
    every = set(corpus.sentences())
    for prompt, answer in PLEASANT.text(spread(PLEASANT)):
        assert answer.endswith(".")
        assert tuple(f"{prompt} {answer}".removesuffix(".").split()) in every


def test_every_prompt_is_demonstrated_and_short_ones_are_padded_on_the_left():
    for task in (PLEASANT, TextLm(words=300, prompts=40, prompt_words=3)):
        demonstrated = set(text_lm._read(task).prompt_N.tolist())
        assert demonstrated == set(range(task.prompts))
    sizes = (PLEASANT.prompt_tokens() != PAD).sum(axis=1)
    assert set(sizes.tolist()) == {1, 2}


def test_the_prompts_are_the_most_frequent_openings():
    prompt_N = text_lm._read(PLEASANT).prompt_N
    count_P = np.bincount(prompt_N, minlength=64)
    assert (np.diff(count_P) <= 0).all()
    assert count_P[0] > 100


def test_sentiment_is_the_packages_own_score_of_the_whole_sentence():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    score = SentimentIntensityAnalyzer().polarity_scores
    rows = spread(PLEASANT)
    expected = [score(f"{prompt} {answer}")["compound"] for prompt, answer in PLEASANT.text(rows)]
    assert PLEASANT.gold(rows).tolist() == expected
    assert 0.2 < np.mean(np.array(expected) != 0) < 0.6  # most sentences of a manual are neutral


def test_sentiment_by_its_published_formula():
    """compound = s / sqrt(s^2 + 15), s the sum of the lexicon's values; a negation turns a value by -0.74."""
    prompt = next(row for row in range(64) if spelled(PLEASANT, row) == "this is")
    good, error = 1.9, -1.7  # "good" and "error" in the lexicon
    gold = [
        float(PLEASANT.gold(answer_in(PLEASANT, prompt, words))[0])
        for words in (
            ["good", "."],
            ["an", "error", "."],
            ["not", "good", "."],
            ["a", "list", "."],
        )
    ]
    expected = [value / np.sqrt(value**2 + 15) for value in (good, error, -0.74 * good, 0.0)]
    assert gold == pytest.approx(expected, abs=1e-4)


def test_readability_by_its_published_formula():
    """4.71 letters per word + 0.5 words per sentence - 21.43, and minus the distance from the target."""
    rows = spread(READABLE)
    plain = np.array([i for i, (_, answer) in enumerate(READABLE.text(rows)) if "'" not in answer])
    expected = []
    for prompt, answer in np.array(READABLE.text(rows))[plain]:
        words = f"{prompt} {answer}".split()
        grade = 4.71 * len("".join(words)) / len(words) + 0.5 * len(words) - 21.43
        expected.append(-abs(grade - 2.0))
    np.testing.assert_allclose(READABLE.gold(rows[plain]), expected, atol=1e-9)
    assert -8 < np.mean(expected) < -3


def test_readability_turns_down_beyond_its_target():
    """Plainer is better than the corpus, and the plainest is worse than the best."""
    the = next(row for row in range(64) if spelled(READABLE, row) == "the")
    usual = READABLE.gold(spread(READABLE)).mean()
    about_right = READABLE.gold(answer_in(READABLE, the, ["value", "returned", "is", "always", "a", "string", "."]))[0]
    too_plain = READABLE.gold(answer_in(READABLE, the, ["a", "a", "a", "."]))[0]
    assert too_plain < usual < about_right


def test_styles_by_hand():
    one = PLEASANT.styles(answer_in(PLEASANT, 0, ["the", "list", "the", "the", "."]))
    assert {name: float(value[0]) for name, value in one.items()} == {
        "length": 5,
        "repetition": 2 / 5,
        "letters": 13 / 4,
        "ended": 1,
    }
    cut = PLEASANT.styles(answer_in(PLEASANT, 0, ["list"]))
    assert (cut["ended"][0], cut["letters"][0]) == (0, 4)


def test_padding_in_an_answer_is_not_read():
    one = answer_in(PLEASANT, 0, ["the", "", "list"])
    assert PLEASANT.text(one)[0][1] == "the list"


@pytest.mark.parametrize(("scorer", "package"), [("sentiment", "vaderSentiment"), ("readability", "textstat")])
def test_a_missing_scorer_is_named(monkeypatch, scorer, package):
    text_lm._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InvalidExperiment, match=rf"task\.scorer = '{scorer}'.*pip install {package}"):
        TextLm(scorer=scorer).check()


@pytest.mark.parametrize(
    ("settings", "field"), [({"words": 9999}, "words"), ({"words": 100, "prompts": 5000}, "prompts")]
)
def test_more_than_the_corpus_has_is_refused(settings, field):
    with pytest.raises(InvalidExperiment, match=rf"task\.{field} = .*has \d+ of them"):
        TextLm(**settings).check()


def test_a_prompt_leaves_something_to_answer():
    with pytest.raises(ValidationError):
        TextLm(prompt_words=4)


def test_tokens_beyond_the_vocabulary_are_refused():
    bad = answer_in(PLEASANT, 0, ["the", "."])
    bad.token_BT[0, 0] = 1502
    with pytest.raises(InvalidDataset, match=r"answers\.token = 1502: answers use tokens 0 to 1501; row 0"):
        PLEASANT.gold(bad)


@pytest.mark.parametrize("scorer", ["sentiment", "readability"])
def test_nothing_is_asked_of_the_network(monkeypatch, scorer):
    for cached in (text_lm._scorer, text_lm._read, corpus.sentences):
        cached.cache_clear()

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    task = TextLm(scorer=scorer)
    task.check()
    assert np.isfinite(task.gold(spread(task, 20))).all()
