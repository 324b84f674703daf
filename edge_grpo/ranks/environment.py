"""What Lightning is told of the processes, the same whatever has started them."""

from lightning_fabric.plugins.environments import ClusterEnvironment


class GivenRanks(ClusterEnvironment):
    """Processes that are there already, and know their places.

    Args:
        rank, world: among all.
        local_rank, node_rank: see `Place`.
        address, port: where they meet.
    """

    def __init__(self, rank: int, world: int, local_rank: int, node_rank: int, address: str, port: int) -> None:
        super().__init__()
        self._rank, self._world, self._local_rank, self._node_rank = rank, world, local_rank, node_rank
        self._address, self._port = address, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._address

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world

    def set_world_size(self, size: int) -> None:
        """Lightning's count is ours."""

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Lightning's rank is ours."""

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return self._node_rank
