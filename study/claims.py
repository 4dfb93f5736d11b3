"""Which claims are put to a model, and which step answers each?"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A claim, and where its answer is.

  Attributes:
    name: of the claim.
    label: in tables and as a heading.
    paper: whether the paper makes it; others go beyond it.
    rule: when it holds, and when in part; thresholds in words.
    step: whose report answers it.
    section: of that report; None where runs are compared (`paired`).
    figures: of the report that go on the page, with what they show.
    against: the step that it is compared with, where two runs are.
  """

  name: str
  label: str
  paper: bool
  rule: str
  step: str
  section: str | None = None
  figures: dict[str, str] = dataclasses.field(default_factory=dict)
  against: str | None = None


CLAIMS = (
  Claim(
    name='one-layer',
    label='One layer creates massive activations',
    paper=True,
    rule=(
      "Holds where one layer writes most of the massive token's plateau, "
      'mostly with its FFN; in part where several layers do so in steps, or '
      'attention does.'
    ),
    step='explain',
    section='emergence',
    figures={
      'emergence-ridges': 'The size of each channel of the massive token and of '
      'an ordinary one, layer by layer, on one scale.',
      'emergence-layers': 'Norms by layer, and which layer writes which share '
      'of the plateau; beside them the same of ordinary tokens.',
    },
  ),
  Claim(
    name='cause',
    label="That layer's norm and FFN act together",
    paper=True,
    rule=(
      'Holds where flattening the norm and neutralising the writing neurons '
      'each changes the spike by a tenth of it, by the whole interval, and '
      'random neurons do not; in part where one of the two does.'
    ),
    step='explain',
    section='cause',
    figures={
      'cause-factorial': 'What is left of the spike when parts of that layer '
      'are taken away, one, two or all at a time.',
    },
  ),
  Claim(
    name='rigidity',
    label="The massive token's state is rigid",
    paper=True,
    rule=(
      'Holds where the least mean cosine across inputs and between layers is '
      'at least ninety-nine hundredths, in part where it is nine tenths.'
    ),
    step='explain',
    section='rigidity',
    figures={
      'rigidity-inputs': 'Cosine between the states that one token has in '
      'different texts, of the massive token and of an ordinary one.',
    },
  ),
  Claim(
    name='sinks',
    label='Attention sinks begin after that layer',
    paper=True,
    rule=(
      'Holds where the massive token is a sink in the mean after the '
      'emergence (more than three tenths of the attention) and in no layer '
      'before; in part where attention to it rises by a tenth or more.'
    ),
    step='explain',
    section='sinks',
    figures={
      'sinks-layers': 'Attention to the massive token by layer, its sink rate, '
      'and attention to ordinary tokens.',
    },
  ),
  Claim(
    name='mitigation',
    label='A mask without training helps, and weakens sinks',
    paper=True,
    rule=(
      'Holds where half of the corpora of chats improve by the whole '
      'interval, no corpus gets worse, attention to the token falls, its '
      'rigidity falls, and every control is surely behind; in part where any '
      'corpus of chats improves.'
    ),
    step='mitigate',
    section='mitigation',
    figures={
      'mitigation-held-out': 'Change of the loss on held-out texts by corpus: '
      'the chosen mask, the published one and the controls.',
      'mitigation-attention': 'Attention to the massive token by layer, and its '
      'sink rate, without a mask and with several.',
    },
  ),
  Claim(
    name='ability',
    label='The relaxed model answers better',
    paper=True,
    rule=(
      'Holds where a task of mathematics or instructions is better by '
      'interval and exact test, and what should be kept was run and is no '
      'worse; in part where one is better. A few items, or answers cut short, '
      'test nothing.'
    ),
    step='evaluate',
    section='evaluation',
    figures={
      'evaluation': 'What the mask changes, task by task: paired differences '
      'with intervals.',
    },
  ),
  Claim(
    name='mask-in-training',
    label='Fine-tuning with the mask in the loop ends better',
    paper=True,
    rule=(
      'Holds where every held-out set of the task is better by the whole '
      'interval; in part where one is.'
    ),
    step='train-lora-mask',
    against='train-lora',
  ),
  Claim(
    name='screen',
    label='The weights alone name the layer',
    paper=False,
    rule=(
      'Holds where layer, channel, sign and neuron are named before texts '
      'say so, and no runner-up comes near; in part where the layer or the '
      'channel is.'
    ),
    step='explain',
    section='screen',
    figures={
      'screen-ranks': 'What two scores of the weights rank first; orange is '
      'what texts name.',
    },
  ),
  Claim(
    name='place',
    label='A place makes a token massive, not a word',
    paper=False,
    rule=(
      'Holds where nine in ten tokens spike alone, and at most one in ten of '
      'them does so behind any token that was tried in front; in part where '
      'one of the two is so.'
    ),
    step='explain',
    section='vocabulary',
  ),
  Claim(
    name='need',
    label='The model needs massive activations',
    paper=False,
    rule=(
      'Holds where zero costs a nat a token or more, by the whole interval, '
      'and neither the mean nor any control costs a twentieth of that; in '
      'part where zero costs something and no control does.'
    ),
    step='explain',
    section='interventions',
    figures={
      'interventions-loss': 'The loss when massive activations are set to zero '
      'or to their mean, and when others are.',
    },
  ),
  Claim(
    name='diversity',
    label='The massive token narrows what attention receives',
    paper=False,
    rule=(
      'Holds where the effective rank is a twentieth lower than before, and '
      'rises by as much without the massive token; in part where other '
      'massive tokens could be why it does not rise.'
    ),
    step='explain',
    section='diversity',
  ),
  Claim(
    name='baked',
    label='Plain weights can hold the mask',
    paper=False,
    rule=(
      "Holds where the baked change lies in the mask's interval on every "
      'corpus, in part where it does on some.'
    ),
    step='mitigate',
  ),
  Claim(
    name='gates',
    label="Gates on the massive token train better than another token's",
    paper=False,
    rule=(
      'Holds where every held-out set of the task is better by the whole '
      'interval; in part where one is.'
    ),
    step='train-gates',
    against='train-token5',
    figures={
      'training-held-out': 'The run of gates on the massive token: change of '
      'the loss on held-out texts.',
    },
  ),
  Claim(
    name='gates-and-mask',
    label='Trained gates do more than a tuned mask',
    paper=False,
    rule=(
      'Holds where every held-out set of the task is better by the whole '
      'interval; in part where one is.'
    ),
    step='train-gates',
    against='tuned-mask',
  ),
  Claim(
    name='eight-bits',
    label='Massive activations are why eight bits fail',
    paper=False,
    rule=(
      'Holds where, wherever rounding costs something, exempting massive '
      'tokens saves half of it and half as much again as exempting ordinary '
      'ones does; in part where it does so somewhere.'
    ),
    step='quantise',
    section='quantisation',
    figures={
      'quantisation-cost': 'What rounding costs, with the massive tokens exempt, '
      'with ordinary ones exempt, and with a scale a token.',
    },
  ),
  Claim(
    name='eight-bits-relief',
    label='A mask makes eight bits cheaper',
    paper=False,
    rule=(
      'Holds where a relaxed model saves a tenth of what rounding costs, by the '
      'whole interval, wherever the rounded models are better than guessing; in '
      'part where it does so somewhere.'
    ),
    step='quantise',
    section='quantisation-relief',
  ),
)
