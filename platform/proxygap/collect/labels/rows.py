"""The rows of a preference file become items and labels, each one checked; what cannot be used is refused by its place.

Shape legend: N pairs, P prompts of a task, L prompt tokens, T answer tokens, H steps, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from proxygap.base.errors import InvalidDataset
from proxygap.base.language import ItemSpec
from proxygap.base.records import Int64

Tokenize = Callable[[str], Sequence[int]]
Columns = dict[str, NDArray[Any]]

TOKENS, STEPS = pa.list_(pa.int64()), pa.list_(pa.list_(pa.float32()))
LABELS = {
    "tie": pa.bool_(),
    "strength": pa.float32(),
    "annotator": pa.int64(),
    "chosen_rating": pa.float32(),
    "rejected_rating": pa.float32(),
}
_DEFAULTS = {"tie": False, "strength": 1.0, "annotator": 0, "chosen_rating": np.nan, "rejected_rating": np.nan}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table that was read from a file, and how to complain about it."""

    source: str
    table: Any

    def refusal(
        self, problem: str, remedy: str, *, column: str = "", row: int | None = None, value: object = None
    ) -> InvalidDataset:
        """The refusal of the file, telling the place in it as far as it is known; rows count from 0."""
        places = [self.source]
        places += [] if row is None else [f"row {row}"]
        places += [f"column {column}"] if column else []
        return InvalidDataset(problem, field=", ".join(places), value=value, remedy=remedy)

    def refuse(self, column: str, bad: NDArray[np.bool_], value: NDArray[Any], problem: str, remedy: str) -> None:
        """Refuse the first row with anything bad, if one has, showing the value; both arrays are (N, ...) alike."""
        if bad.any():
            place = tuple(np.argwhere(bad)[0].tolist())
            raise self.refusal(problem, remedy, column=column, row=place[0], value=value[place].item())

    def column(self, name: str, kind: Any) -> Any:
        """A column of this type as one arrow array, without gaps at any depth; other widths are converted."""
        if name not in self.table.column_names:
            raise self.refusal(
                f"this column is missing among {', '.join(self.table.column_names) or 'none'}",
                "Give prompt, chosen and rejected, or a file of write_preferences for this task",
                column=name,
            )
        rows = level = self._converted(name, kind).combine_chunks()
        while True:
            if level.null_count:
                row = int(np.flatnonzero(level.is_null().to_numpy(zero_copy_only=False))[0]) if level is rows else None
                raise self.refusal("there are gaps", "Fill the gaps or remove their rows", column=name, row=row)
            if not pa.types.is_list(level.type):
                return rows
            level = level.flatten()

    def numbers(self, name: str, kind: Any) -> NDArray[Any]:
        """A column without lists, as an array of its own: arrays that borrow from arrow cannot be written to."""
        return np.array(self.column(name, kind).to_numpy(zero_copy_only=False))

    def tokens(self, name: str, tokenize: Tokenize | None) -> Any:
        """A column of tokens, or of text that is tokenized, as lists of int64."""
        kind = self.table[name].type if name in self.table.column_names else TOKENS
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return self.column(name, TOKENS)
        if tokenize is None:
            remedy = "Read it with tokenize, or write lists of tokens"
            raise self.refusal("this is text, and no tokenizer was given", remedy, column=name)
        return pa.array([[int(t) for t in tokenize(text)] for text in self.column(name, kind).to_pylist()], TOKENS)

    def _converted(self, name: str, kind: Any) -> Any:
        column = self.table[name]
        if column.type == kind:
            return column
        try:
            if _kin(column.type, kind):
                return column.cast(kind, safe=not pa.types.is_floating(kind))
        except pa.ArrowException as error:
            why = f": {(str(error).splitlines() or [''])[0]}"
        else:
            why = ""
        remedy = "Convert the column before it is written"
        raise self.refusal(f"the column is {column.type}, not {kind}{why}", remedy, column=name)


def items_of(sheet: Sheet, side: str, spec: ItemSpec) -> Columns:
    """One side of the pairs (``chosen`` or ``rejected``) of a file of `write_preferences`, checked and padded."""
    items: Columns = {}
    if spec.max_tokens:
        names = (f"{side}_prompt_token", f"{side}_token")
        items["prompt"] = sheet.numbers(f"{side}_prompt", pa.int64())
        items |= _answers(sheet, sheet.column(names[0], TOKENS), sheet.column(names[1], TOKENS), names, spec)
    if spec.features:
        items["feature"] = _features(sheet, f"{side}_feature", spec.features)
    return items


def plain_items_of(sheet: Sheet, spec: ItemSpec, tokenize: Tokenize | None) -> tuple[Columns, Columns]:
    """Both sides from the field's plain columns ``prompt``, ``chosen`` and ``rejected``; no rows of a prompt table."""
    if not spec.max_tokens or spec.features:
        raise sheet.refusal(
            "not written by ProxyGap, and plain columns can only hold prompts and answers",
            "Write segments and features with write_preferences",
        )
    prompt, chosen, rejected = (sheet.tokens(name, tokenize) for name in ("prompt", "chosen", "rejected"))
    return (
        _answers(sheet, prompt, chosen, ("prompt", "chosen"), spec),
        _answers(sheet, prompt, rejected, ("prompt", "rejected"), spec),
    )


def found_in(prompts: Int64, sheet: Sheet, items: Columns, side: str) -> Columns:
    """The items, every prompt known to be the row of the prompt table (P, L) that it says, or given that row."""
    remedy = "Choose the task that the file was made for"
    if "prompt" in items:
        known_N = (items["prompt"] >= 0) & (items["prompt"] < len(prompts))
        same_N = known_N & (prompts[items["prompt"] * known_N] == items["prompt_token"]).all(axis=1)
        sheet.refuse(f"{side}_prompt", ~same_N, items["prompt"], "the task's prompt of that number is another", remedy)
        return items
    row_of = {prompt_L.tobytes(): row for row, prompt_L in reversed(list(enumerate(prompts.astype(np.int64))))}
    found_N = np.array([row_of.get(prompt_L.tobytes(), -1) for prompt_L in items["prompt_token"]], np.int64)
    sheet.refuse("prompt", found_N < 0, found_N, f"not one of the task's {len(prompts)} prompts", remedy)
    return {"prompt": found_N, **items}


def labels_of(sheet: Sheet) -> Columns:
    """What stands beside the items, as the arguments of `Preferences`; defaults for columns that are not there."""
    found: Columns = {}
    for name, kind in LABELS.items():
        if name in sheet.table.column_names:
            found[name] = sheet.numbers(name, kind)
        else:
            found[name] = np.full(sheet.table.num_rows, _DEFAULTS[name], dtype=kind.to_pandas_dtype())
    strength_N, annotator_N = found["strength"], found["annotator"]
    weak_N = ~(np.isfinite(strength_N) & (strength_N > 0))
    sheet.refuse("strength", weak_N, strength_N, "a strength is a positive number", "Write 1 where it is unknown")
    sheet.refuse("annotator", annotator_N < 0, annotator_N, "annotators count from 0", "Number them anew")
    for name in ("chosen_rating", "rejected_rating"):
        sheet.refuse(name, np.isinf(found[name]), found[name], "a rating is infinite", "Write NaN for not rated")
    return {f"{name}_N": column for name, column in found.items()}


def _answers(sheet: Sheet, prompt: Any, answer: Any, names: tuple[str, str], spec: ItemSpec) -> Columns:
    """Prompts padded on the left, answers on the right: known tokens only, none too long, no answer empty."""
    limits = {"the task's prompts": spec.prompt_length, "the task's answers": spec.max_tokens}
    flats, lengths = [], []
    for name, lists, (whose, limit) in zip(names, (prompt, answer), limits.items(), strict=True):
        length_N, flat = _unpacked(sheet, lists, name, spec.vocabulary)
        remedy = "Shorten it, or raise the task's limit"
        sheet.refuse(name, length_N > limit, length_N, f"more tokens than {whose} may have, {limit}", remedy)
        flats.append(flat)
        lengths.append(length_N)
    sheet.refuse(names[1], lengths[1] == 0, lengths[1], "an answer of no tokens", "Remove the pair")
    prompt_NL = np.full((len(lengths[0]), spec.prompt_length), spec.pad_token, np.int64)
    prompt_NL[np.arange(spec.prompt_length) >= spec.prompt_length - lengths[0][:, None]] = flats[0]
    token_NT = np.full((len(lengths[1]), spec.max_tokens), spec.pad_token, np.int64)
    token_NT[np.arange(spec.max_tokens) < lengths[1][:, None]] = flats[1]
    return {"prompt_token": prompt_NL, "token": token_NT, "length": lengths[1]}


def _unpacked(sheet: Sheet, lists: Any, name: str, vocabulary: int) -> tuple[Int64, Int64]:
    """Lengths (N,) and all tokens of a column of lists."""
    length_N = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    flat: Int64 = np.array(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.int64)
    bad = np.flatnonzero((flat < 0) | (flat >= vocabulary))
    if len(bad):
        raise sheet.refusal(
            f"tokens of the task's vocabulary are 0 to {vocabulary - 1}",
            "Use the task's tokenizer, or choose the task that the file was made for",
            column=name,
            row=int(np.repeat(np.arange(len(length_N)), length_N)[bad[0]]),
            value=int(flat[bad[0]]),
        )
    return length_N, flat


def _features(sheet: Sheet, name: str, features: int) -> NDArray[Any]:
    """Features (N, H, F): finite, F in every step, as many steps in every row as in the first."""
    rows = sheet.column(name, STEPS)
    steps_N = np.asarray(rows.value_lengths().to_numpy(zero_copy_only=False))
    steps = max(1, int(steps_N[0])) if len(steps_N) else 1
    remedy = "Cut all segments to one length"
    sheet.refuse(name, np.not_equal(steps_N, steps), steps_N, f"steps, where {steps} are expected", remedy)
    width_NH = rows.flatten().value_lengths().to_numpy(zero_copy_only=False).reshape(len(steps_N), steps)
    remedy = "Choose the task that the file was made for"
    sheet.refuse(name, width_NH != features, width_NH, f"features in a step, where the task has {features}", remedy)
    values = rows.flatten().flatten().to_numpy(zero_copy_only=False)
    value_NHF = np.array(values, dtype=np.float32).reshape(len(steps_N), steps, features)
    remedy = "Remove the pair, or mend what measured it"
    sheet.refuse(name, ~np.isfinite(value_NHF), value_NHF, "a feature is not finite", remedy)
    return value_NHF


def _kin(found: Any, wanted: Any) -> bool:
    """Whether converting keeps the meaning: numbers to numbers, lists of integers to lists of int64."""
    if pa.types.is_list(wanted):
        listed = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return listed and _kin(found.value_type, wanted.value_type)
    return bool((pa.types.is_integer(found) or pa.types.is_floating(found)) and not pa.types.is_boolean(wanted))
