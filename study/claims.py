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
    step: whose report answers it.
    section: of that report; None where runs are compared (`paired`).
    figures: of the report that go on the page, with what they show.
    against: the step that it is compared with, where two runs are.
  """

  name: str
  label: str
  paper: bool
  step: str
  section: str | None = None
  figures: dict[str, str] = dataclasses.field(default_factory=dict)
  against: str | None = None


CLAIMS = (
  Claim(
    name='one-layer',
    label='One layer creates massive activations',
    paper=True,
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
    step='train-lora-mask',
    against='train-lora',
  ),
  Claim(
    name='screen',
    label='The weights alone name the layer',
    paper=False,
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
    step='explain',
    section='vocabulary',
  ),
  Claim(
    name='need',
    label='The model needs massive activations',
    paper=False,
    step='explain',
    section='interventions',
    figures={
      'interventions-loss': 'The loss when massive activations are set to zero '
      'or to their mean, and when others are.',
    },
  ),
  Claim(
    name='diversity',
    label='What attention receives is narrower after that layer',
    paper=False,
    step='explain',
    section='diversity',
  ),
  Claim(
    name='baked',
    label='Plain weights can hold the mask',
    paper=False,
    step='mitigate',
  ),
  Claim(
    name='gates',
    label="Gates on the massive token train better than another token's",
    paper=False,
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
    step='train-gates',
    against='tuned-mask',
  ),
  Claim(
    name='eight-bits',
    label='Massive activations are why eight bits fail, and a mask helps',
    paper=False,
    step='quantise',
    section='quantisation',
    figures={
      'quantisation-cost': 'What rounding costs, with the massive tokens exempt, '
      'with ordinary ones exempt, and with a scale a token.',
    },
  ),
)
