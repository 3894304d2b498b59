"""How a vLLM is launched, and how a launch is given up. Imports vLLM when it launches one, and not before."""

import multiprocessing
import os
from collections.abc import Callable

from server.engine.vllm.config import VllmEngineConfig, engine_environment
from server.engine.vllm.core import Core

# As vLLM calls them; those of several data-parallel ranks have a number behind it.
_ENGINE_PROCESS = "EngineCore"

Launch = Callable[[VllmEngineConfig], Core]
"""Starts vLLM and waits until the base is loaded. A worker thread. Raises MedleyError, saying what to do."""


def abandon_launches() -> None:
    """End the engine processes of this process, so that a launch that nobody waits for any more fails soon."""
    for process in multiprocessing.active_children():
        if process.name.startswith(_ENGINE_PROCESS):
            process.kill()


def launch_vllm(config: VllmEngineConfig) -> Core:
    """Start vLLM itself.

    Raises:
        MedleyError: If it cannot be started.
    """
    os.environ.update(engine_environment(config))
    # Only here: it takes seconds, and reads the environment.
    from server.engine.vllm.engine_process import EngineProcess

    return EngineProcess(config)
