"""Figures of chips: each has a source, and they agree with one another."""

from __future__ import annotations

import types

import pytest

from me_jax.planning import chips
from me_jax.training import flops

CHIPS = list(chips.CHIPS.values())


@pytest.mark.parametrize('chip', CHIPS, ids=lambda chip: chip.name)
def test_every_figure_has_a_source_and_a_plausible_size(chip):
  assert chip.source
  assert all(page.startswith('https://') for page in chip.source)
  assert 16e9 <= chip.hbm <= 300e9
  # Memory is slower than arithmetic, wires than memory, the network than those.
  assert 100 <= chip.flops / chip.bandwidth <= 600
  assert chip.links * chip.link_bandwidth < chip.bandwidth
  if chip.hosts_network is not None:
    assert chip.hosts_network < chip.link_bandwidth


@pytest.mark.parametrize('chip', CHIPS, ids=lambda chip: chip.name)
def test_a_peak_is_what_runs_on_the_chip_are_measured_by(chip):
  device = types.SimpleNamespace(device_kind=chip.kind)
  assert flops.peak(device) * chip.cores == chip.flops


@pytest.mark.parametrize(
  'name, total',
  # Sum of all links in both directions, as Google and NVIDIA give it.
  [('v5e', 400e9), ('v5p', 1200e9), ('v6e', 800e9), ('v7x', 1200e9),
   ('a100', 600e9), ('h100', 900e9), ('h200', 900e9), ('b200', 1800e9)],
)  # fmt: skip
def test_links_add_up_to_the_published_sum(name, total):
  chip = chips.CHIPS[name]
  assert 2 * chip.links * chip.link_bandwidth == total


@pytest.mark.parametrize(
  'name, bisection, links',
  # A torus is cut in two places, each as wide as the other sides together.
  [('v5e', 1.6e12, 2 * 16), ('v6e', 3.2e12, 2 * 16)],
)
def test_links_agree_with_the_pods_bisection(name, bisection, links):
  assert chips.CHIPS[name].link_bandwidth * links == bisection


def test_only_tpus_are_for_the_tpu_compiler():
  assert {chip.name for chip in CHIPS if chip.tpu} == {
    'v4', 'v5e', 'v5p', 'v6e', 'v7x'
  }  # fmt: skip
