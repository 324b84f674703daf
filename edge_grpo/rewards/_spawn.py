"""A spawn context whose children do not import the parent's `__main__`.

The standard spawn context runs the parent's script again in every child. Ours is the training entry point: that
would load torch into each grading worker, cost seconds a restart and break its memory limit.
"""

import io
import os
from multiprocessing import reduction, resource_tracker, spawn, util
from multiprocessing.context import SpawnContext, SpawnProcess, set_spawning_popen
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess
from typing import Any


def _description(process: BaseProcess, popen: Popen) -> memoryview:
    """What the child reads first: paths and flags, then the process object; nothing about `__main__`."""
    preparation = spawn.get_preparation_data(process.name)
    for key in ("init_main_from_name", "init_main_from_path"):
        preparation.pop(key, None)
    buffer = io.BytesIO()
    set_spawning_popen(popen)
    try:
        reduction.dump(preparation, buffer)
        reduction.dump(process, buffer)
    finally:
        set_spawning_popen(None)
    return buffer.getbuffer()


class _BarePopen(Popen):
    """`popen_spawn_posix.Popen` with our description instead of the standard one."""

    _fds: list[int | None]

    def _launch(self, process_obj: BaseProcess) -> None:
        tracker_fd = resource_tracker.getfd()
        self._fds.append(tracker_fd)
        description = _description(process_obj, self)
        parent_r, child_w = os.pipe()
        child_r, parent_w = os.pipe()
        self.finalizer = util.Finalize(self, util.close_fds, (parent_r, parent_w))  # type: ignore[attr-defined]
        try:
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_r)
            self._fds.extend([child_r, child_w])
            self.pid = util.spawnv_passfds(spawn.get_executable(), command, self._fds)  # type: ignore[arg-type]
            self.sentinel = parent_r
            with open(parent_w, "wb", closefd=False) as pipe:
                pipe.write(description)
        finally:
            os.close(child_r)
            os.close(child_w)


class BareSpawnProcess(SpawnProcess):
    """A spawned process that starts from an empty `__main__`."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _BarePopen(process_obj)


class BareSpawnContext(SpawnContext):
    """Give it to a pool in place of `multiprocessing.get_context("spawn")`."""

    Process = BareSpawnProcess
