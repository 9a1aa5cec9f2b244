"""A suffix automaton of tokens: where a text's end occurred before, how often, and what followed.

It knows nothing of drafts or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

ROOT_STATE = 0  # the state of the empty sequence


class SuffixAutomaton:
    """All sequences of consecutive tokens of a growing text, with the number of their occurrences.

    A state stands for the sequences that end at the same places; `length` is that of the longest of them, and `link`
    leads to the state of the next shorter ones.

    Attributes:
        following: of each state, the state after each token that followed.
        link, length, count: of each state; `count` is the number of occurrences.
        last: state of the whole text.

    Source: Blumer et al. 1985, doi:10.1016/0304-3975(85)90157-4; counts as in SuffixDecoding (arXiv:2411.04975), whose
    tree of suffixes has the same nodes.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.following: list[dict[int, int]] = [{}]
        self.link, self.length, self.count = [-1], [0], [0]
        self.last = ROOT_STATE
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the end of the text."""
        for token in tokens:
            self._add(token)

    def break_text(self) -> None:
        """Begin another text: no sequence crosses the break."""
        self.last = ROOT_STATE

    def advance(self, state: int, length: int, token: int) -> tuple[int, int]:
        """(state, length) of the longest match after one more token; (`ROOT_STATE`, 0) without a match."""
        while state != ROOT_STATE and token not in self.following[state]:
            state = self.link[state]
            length = self.length[state]
        if token in self.following[state]:
            return self.following[state][token], length + 1
        return ROOT_STATE, 0

    def shorter(self, state: int, length: int) -> Iterator[tuple[int, int]]:
        """(state, length) of the match, then of each shorter one that occurs at more places; the empty one is not."""
        while state > ROOT_STATE:
            yield state, length
            state = self.link[state]
            length = self.length[state]

    def earlier(self) -> tuple[int, int]:
        """(state, length) of the longest end of the text that occurred before."""
        state = self.link[self.last] if self.last != ROOT_STATE else ROOT_STATE
        return state, self.length[state]

    def _add(self, token: int) -> None:
        state = self.last
        if token in self.following[state]:  # only after a break: what is added occurred in an earlier text
            then = self._split(state, token)
        else:
            then = self._new({}, self.length[state] + 1)
            while state >= 0 and token not in self.following[state]:
                self.following[state][token] = then
                state = self.link[state]
            self.link[then] = self._split(state, token) if state >= 0 else ROOT_STATE
        self.last = then
        while then > ROOT_STATE:
            self.count[then] += 1
            then = self.link[then]
        self.count[ROOT_STATE] += 1

    def _split(self, state: int, token: int) -> int:
        """The state of the sequences of `state` with the token after them, and of no longer ones."""
        then = self.following[state][token]
        if self.length[then] == self.length[state] + 1:
            return then
        own = self._new(dict(self.following[then]), self.length[state] + 1)
        self.link[own], self.count[own] = self.link[then], self.count[then]
        self.link[then] = own
        while state >= 0 and self.following[state].get(token) == then:
            self.following[state][token] = own
            state = self.link[state]
        return own

    def _new(self, following: dict[int, int], length: int) -> int:
        self.following.append(following)
        self.link.append(ROOT_STATE)
        self.length.append(length)
        self.count.append(0)
        return len(self.length) - 1
