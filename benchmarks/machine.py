"""What machine is this, and with which versions?"""

from __future__ import annotations

from importlib import metadata
import os
import pathlib
import platform
from typing import Any


def describe() -> dict[str, Any]:
  """Returns cores, the CPU's name, memory in GiB, and the system's name."""
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return {
    'cores': os.cpu_count(),
    'cpu': _cpu(),
    'memory': round(pages / 2**30, 1),
    'system': f'{platform.system()} {platform.machine()}',
  }


def _cpu() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    name, _, value = line.partition(':')
    if name.strip() == 'model name':
      return value.strip()
  return platform.processor() or platform.machine()


def versions(*names: str) -> dict[str, str]:
  """Returns the versions of Python and of those packages that are there."""
  found = {'python': platform.python_version()}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found
