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
    rule: when it holds, and when in part; thresholds in words. "Surely" is
      said on the page (`words.SUMMARY`).
    step: whose report answers it.
    section: of that report; None where runs are compared (`paired`).
    figures: of the report that go on the page, with what they show.
    against: the step that it is compared with, where two runs are.
    remark: what to keep in mind while reading the answer, of any model.
  """

  name: str
  label: str
  paper: bool
  rule: str
  step: str
  section: str | None = None
  figures: dict[str, str] = dataclasses.field(default_factory=dict)
  against: str | None = None
  remark: str = ''


CLAIMS = (
  Claim(
    name='one-layer',
    label='One layer creates massive activations',
    paper=True,
    rule=(
      "Holds where one layer writes eight tenths of the massive token's "
      'plateau or more, at least half of that with its FFN; in part where '
      'its attention writes more of it, or two or three layers write the '
      'plateau together.'
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
      'Two switches are thrown, alone and together: the norm flattened, and '
      'the writing neurons neutralised. A switch counts where its main '
      'effect takes a tenth of the spike away or more, surely; that of the '
      'neurons also only where as many random ones take less than half as '
      'much. Holds where both count, in part where one does.'
    ),
    step='explain',
    section='cause',
    figures={
      'cause-factorial': 'What is left of the spike when parts of that layer '
      'are taken away, one, two or all at a time. First in that layer, then '
      'in every layer by itself. Whiskers: smallest and largest over tokens.',
    },
  ),
  Claim(
    name='rigidity',
    label="The massive token's state is rigid",
    paper=True,
    rule=(
      'Holds where the least mean cosine, of its states across inputs and '
      'between layers and of what attention receives of it, is at least '
      'ninety-nine hundredths; in part where it is nine tenths.'
    ),
    step='explain',
    section='rigidity',
    figures={
      'rigidity-inputs': 'Cosine between the states that one token has in '
      'different texts, of the massive token and of an ordinary one: mean over '
      'pairs of texts, a band from the fifth to the ninety-fifth percentile of '
      'pairs, and the smallest pair.',
    },
  ),
  Claim(
    name='sinks',
    label='Attention sinks begin after that layer',
    paper=True,
    rule=(
      'Holds where the massive token draws more than three tenths of the '
      'attention in the mean over the layers after the emergence, and in no '
      'layer before; in part where that mean is higher than before by a '
      'tenth of all attention.'
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
      'What counts are corpora of chats, and plain texts only where there '
      'are no chats. Holds where at least half of them improve surely, no '
      'corpus gets worse surely, attention to the token and its rigidity '
      'fall, and every control is surely behind on each corpus that '
      'improves; in part where any improves surely.'
    ),
    step='mitigate',
    section='mitigation',
    figures={
      'mitigation-held-out': 'Change of the loss on held-out texts by corpus: '
      'the chosen mask, the published one and the controls.',
      'mitigation-attention': 'Attention to the massive token by layer, and its '
      'sink rate, without a mask and with several.',
    },
    remark=(
      'The control looks at chats alone, as the rule does, and at whole ones: '
      'losses of answers were not paired with those of the controls. Attention '
      'has no interval, and falls with other masks, too; where random channels '
      'take as much of it, the fall says nothing of the channels chosen.'
    ),
  ),
  Claim(
    name='ability',
    label='The relaxed model answers better',
    paper=True,
    rule=(
      'Holds where a metric of mathematics or instructions is better, '
      'surely and by an exact test, where GSM8K, IFEval, MMLU and XSTest '
      'were all run, and where no metric but a loss is worse; in part where '
      'one is better. A part of the items, answers cut short, or our own '
      'samples test nothing.'
    ),
    step='evaluate',
    section='evaluation',
    figures={
      'evaluation': 'What the mask changes, task by task: paired differences '
      'with intervals. Of losses and of refused safe prompts less is better, of '
      'unsafe ones only the direction is told, and of all else more is better.',
    },
  ),
  Claim(
    name='mask-in-training',
    label='Fine-tuning with the mask in the loop ends better',
    paper=True,
    rule=(
      'Holds where every held-out set of the task is better surely; in part '
      'where one is, and none is worse surely.'
    ),
    step='train-lora-mask',
    against='train-lora',
  ),
  Claim(
    name='screen',
    label='The weights alone name the layer',
    paper=False,
    rule=(
      'Holds where layer, channel, sign and neuron are those that texts '
      'name, and the prediction is clear: its score is half as high again '
      'as that of any other layer or channel and five times that of shuffled '
      'weights, and a later neuron erases what it writes. In part where the '
      'layer or the channel is right.'
    ),
    step='explain',
    section='screen',
    figures={
      'screen-ranks': 'What two scores of the weights rank first; orange is '
      'what texts name. Several neurons may write one channel.',
    },
  ),
  Claim(
    name='place',
    label='A place makes a token massive, not a word',
    paper=False,
    rule=(
      'Holds where nine in ten tokens spike alone, and at most one in ten '
      'of them does so behind any token that was tried in front; in part '
      'where one of the two is so.'
    ),
    step='explain',
    section='vocabulary',
  ),
  Claim(
    name='need',
    label='The model needs massive activations',
    paper=False,
    rule=(
      'Holds where zero costs a nat a token or more, surely, and neither '
      'the mean nor any control changes the loss by more than a twentieth '
      'of that; in part where zero costs anything, surely, and no control '
      'changes it by more.'
    ),
    step='explain',
    section='interventions',
    figures={
      'interventions-loss': 'The loss when massive activations are set to zero '
      'or to their mean, and when others are.',
    },
    remark=(
      'Above the logarithm of the vocabulary, in nats, a model predicts worse '
      'than one that gives all words the same probability: how much worse says '
      'little. What the absence of massive activations costs is better read '
      'where whole neurons are missing than where a super weight is (see Words).'
    ),
  ),
  Claim(
    name='diversity',
    label='The massive token narrows what attention receives',
    paper=False,
    rule=(
      'Holds where the effective rank is a twentieth lower than before the '
      'emergence, and rises by as much without the massive token; in part '
      'where it is lower, and other massive tokens of a text could be why '
      'it does not rise.'
    ),
    step='explain',
    section='diversity',
  ),
  Claim(
    name='baked',
    label='Plain weights can hold the mask',
    paper=False,
    rule=(
      "Holds where, on every corpus, the baked change lies in the mask's "
      'interval and the two diverge by at most a tenth of what the mask '
      'diverges from the stock model; in part where both are so on some.'
    ),
    step='mitigate',
  ),
  Claim(
    name='gates',
    label="Gates on the massive token train better than another token's",
    paper=False,
    rule=(
      'Holds where every held-out set of the task is better surely; in part '
      'where one is, and none is worse surely.'
    ),
    step='train-gates',
    against='train-token5',
    figures={
      'training-held-out': 'The run of gates on the massive token alone: change '
      'of the loss on held-out texts. The table has the other run, too.',
    },
  ),
  Claim(
    name='gates-and-mask',
    label='Training gates does more than choosing a mask',
    paper=False,
    rule=(
      'Holds where every held-out set of the task is better surely; in part '
      'where one is, and none is worse surely.'
    ),
    step='train-gates',
    against='tuned-mask',
  ),
  Claim(
    name='eight-bits',
    label='Massive activations are why eight bits fail',
    paper=False,
    rule=(
      'Cases are the corpora, each with what matrices receive rounded, and '
      'with the residual stream rounded; those count where rounding costs a '
      'twentieth of a nat a token, surely. Holds where, in all of them, '
      'exempting massive tokens surely saves half of the cost, and saves '
      'more than exempting ordinary ones does by half of the cost; in part '
      'where it does so in some.'
    ),
    step='quantise',
    section='quantisation',
    figures={
      'quantisation-cost': 'What rounding costs, with the massive tokens exempt, '
      'with ordinary ones exempt, and with a scale a token.',
    },
    remark=(
      'This rule took the place of one that a first small run had not met, by '
      'which exempting ordinary tokens was to change next to nothing; rounding '
      'is chaotic, and other draws of them change the cost either way. Where '
      'the rounded model is worse than guessing, which the next claim leaves '
      'out, a case shows that exempting helps, and not by how much. The rows '
      'of the tables say in which layers the cost arises; that need not be '
      'the one that writes the spike.'
    ),
  ),
  Claim(
    name='eight-bits-relief',
    label='A mask makes eight bits cheaper',
    paper=False,
    rule=(
      'Of the cases above, those count where the rounded models are better '
      'than guessing. Holds where a relaxed model takes a tenth of the cost '
      'away in all of them, surely; in part where it does so in some.'
    ),
    step='quantise',
    section='quantisation-relief',
  ),
)
