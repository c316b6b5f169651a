"""Puts the program `holdfast` into the wheel, where HOLDFAST_WHEEL_BIN names it, as `make wheel` does.

Without it the wheel is the class alone, for any machine: for a hub whose cluster runs elsewhere.
"""

import os
import subprocess

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class ProgramHook(BuildHookInterface):
    def initialize(self, version, build_data):
        program = os.environ.get("HOLDFAST_WHEEL_BIN")
        # Whoever works on the checkout runs what cargo built last.
        if not program or version == "editable":
            return
        found = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        wanted = f"holdfast {self.metadata.version}"
        if found != wanted:
            raise ValueError(f"HOLDFAST_WHEEL_BIN: {program} is {found!r}, and this package is of {wanted!r}")
        build_data["shared_scripts"][os.path.abspath(program)] = "holdfast"
        build_data["pure_python"] = False
        # It has just run here, so it asks for no newer C library than this machine's. `linux_*` says nothing about that.
        platform = min(platform_tags(), key=lambda tag: tag.startswith("linux_"))
        build_data["tag"] = f"py3-none-{platform}"
