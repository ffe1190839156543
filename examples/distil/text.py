"""Text files as windows of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from examples.training.errors import InputError, UnreadableFile

# The last windows of each file are held out, one in this many.
ONE_IN = 10


@dataclass(frozen=True)
class Windows:
    """Windows of text, each (count, tokens) of int64.

    taught: to learn from.
    held_out: to measure with; they come after those of ``taught`` in every file.
    """

    taught: Tensor
    held_out: Tensor


def read(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, tokens: int, held_out: int
) -> Windows:
    """Cuts text files into windows of ``tokens`` tokens; what is left of a file is dropped.

    Args:
        paths: of files, or of folders whose files are all read.
        tokenizer: of the model.
        tokens: length of a window, special tokens included.
        held_out: number of windows that are held out, from all files alike.

    Raises:
        InputError: a path does not exist, a file is not text, or there is too little text.
    """
    taught, kept = [], []
    for path in _files(paths):
        windows = _windows(path, tokenizer, tokens)
        last = len(windows) - len(windows) // ONE_IN
        taught += windows[:last]
        kept += windows[last:]
    if len(kept) < held_out:
        raise InputError(
            f"the text has {len(taught) + len(kept):,} windows of {tokens} tokens, of which "
            f"{len(kept)} can be held out, one in {ONE_IN} of each file; {held_out} are needed: "
            "give more text or longer files, or lower --held_out"
        )
    chosen = torch.linspace(0, len(kept) - 1, held_out).long()
    return Windows(torch.tensor(taught), torch.tensor(kept)[chosen])


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
        else:
            raise InputError(f"there is no text file or folder {path}")


def _windows(path: Path, tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is not text in UTF-8: {error}") from error
    cut = tokenizer(text, truncation=True, max_length=tokens, return_overflowing_tokens=True)
    return [window for window in cut["input_ids"] if len(window) == tokens]
