"""Which characters of a response's text are which token's."""

from collections.abc import Callable

import torch
from torch import Tensor

from edge_grpo.types.responses import Provenance, Response

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 6  # tokens that one character can have, and one more before and behind it


class TokenTexts:
    """Divides decoded texts among their tokens.

    A text is what its tokens decode to together, which is not always what they decode to alone: a character of several
    bytes may be several tokens, and some tokenizers drop the space before a first word.

    Args:
        decode: token ids -> text without special tokens.
    """

    def __init__(self, decode: Callable[[Tensor], str]) -> None:
        self.decode = decode
        self._alone: dict[int, str] = {}

    def characters(self, response: Response, text: str) -> list[int]:
        """[L] characters of `text` that each token is; 0 for special tokens and for all but the last of a character."""
        ids: list[int] = response.token_ids.tolist()
        for i in set(ids) - self._alone.keys():
            self._alone[i] = self.decode(torch.tensor([i]))
        alone = [self._alone[i] for i in ids]
        if "".join(alone) == text:
            return list(map(len, alone))
        return self._aligned(ids, alone, text)

    def pieces(self, response: Response, text: str, characters: list[int]) -> list[tuple[str, str]]:
        """(provenance, text) of every run of characters that one writer wrote, in order; together they are `text`."""
        kinds, lengths = torch.unique_consecutive(response.provenance, return_counts=True)
        found, token, at = [], 0, 0
        for kind, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
            end = at + sum(characters[token : token + length])
            if end > at:  # an EOS alone has no text
                found.append((Provenance(kind).name.lower(), text[at:end]))
            token, at = token + length, end
        return found

    def _aligned(self, ids: list[int], alone: list[str], text: str) -> list[int]:
        found, i, at = [0] * len(ids), 0, 0
        while i < len(ids):
            last, length = self._next(ids, alone, text, i, at)
            found[last] = length
            i, at = last + 1, at + length
        if found:
            found[-1] += len(text) - at  # a tokenizer that decodes in yet another way
        return found

    def _next(self, ids: list[int], alone: list[str], text: str, i: int, at: int) -> tuple[int, int]:
        """The token up to which the text goes on, and by how many characters."""
        for piece in (alone[i], f" {alone[i]}"):
            if text.startswith(piece, at):
                return i, len(piece)
        for last in range(i + 1, min(i + _LONGEST, len(ids))):
            piece = self.decode(torch.tensor(ids[i : last + 1]))
            if _UNKNOWN not in piece and text.startswith(piece, at):
                return last, len(piece)
        return i, int(text.startswith(_UNKNOWN, at))
