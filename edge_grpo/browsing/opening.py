"""What the paths on the command line name."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from edge_grpo.browsing.finding import find
from edge_grpo.browsing.recordings import EvaluationRecording, Recording, RunRecording


class Recordings(Sequence[Recording]):
    """What some paths name, each under the shortest name that tells it from the others, read when it is asked for.

    Args:
        paths: folders of runs, sweeps or evaluations, or files completions.parquet.

    Raises:
        UserError: there is nothing to read at one of them; later, one that cannot be read.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._found = [source for path in paths for source in find(path)]
        self.names = short_names([path if kind == "run" else path.parent for kind, path in self._found])
        self._read: dict[int, Recording] = {}

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, i: int) -> Recording: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Recording]: ...
    def __getitem__(self, i: int | slice) -> Recording | Sequence[Recording]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        if i not in self._read:
            kind, path = self._found[i]
            self._read[i] = (RunRecording if kind == "run" else EvaluationRecording)(self.names[i], path)
        return self._read[i]

    def reload(self, i: int) -> None:
        """Read it again when it is asked for: a run may have gone on."""
        self._read.pop(i, None)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart.

    >>> short_names([Path("/a/sweep/0"), Path("/a/sweep/1")]), short_names([Path("/a/x/0"), Path("/a/y/0")])
    (['0', '1'], ['x/0', 'y/0'])
    """
    parts = [path.resolve().parts for path in paths]
    longest = max((len(each) for each in parts), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
