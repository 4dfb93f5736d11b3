"""What does the page say whatever was measured? Sentences without numbers.

Every number on the page comes from the extracts; a test looks for digits here.
"""

from __future__ import annotations

TITLE = 'A reproduction study'
GENERATED = (
  '<!-- Written by `make study` from the extracts in study/; do not edit. -->'
)
MODEL = '{model} ({size} parameters)'
PAPER = (
  'Shi, Wang, Yang, Wang and Tang, *A Single Layer to Explain Them All: '
  'Understanding Massive Activations in Large Language Models* '
  '(arXiv 2605.08504)'
)
ABSTRACT = (
  'The paper ({paper}) says that one decoder layer, the Massive Emergence (ME) '
  'Layer, creates the massive activations of a language model, why it does so, '
  'and that relaxing them helps. We put {paper_claims} claims of it and '
  '{own_claims} that go beyond it to {models}, with controls. {outcomes} '
  'Verdicts are about these models, these texts and these thresholds. They are '
  'neither a check of the tables in the paper, which we do not have, nor a '
  'statement about larger models.'
)
HEADLINE = 'In {model}, {headline} '
OUTCOME = (
  'On {model}, of the claims of the paper, {paper}; of the others, {own}.'
)
VERDICTS = {
  'holds': 'holds',
  'in part': 'holds in part',
  'does not hold': 'does not hold here',
  'not tested': 'not tested',
}
# The same of one claim, and of several.
COUNTED = {
  'holds': ('holds', 'hold'),
  'in part': ('holds in part', 'hold in part'),
  'does not hold': ('does not hold here', 'do not hold here'),
  'not tested': ('was not tested', 'were not tested'),
}
SUMMARY = (
  'Below, each claim has its rule beside it: when it *holds*, and when it holds *in '
  'part*. Else it *does not hold here*; it is *not tested* where a step was not '
  'run, or where a model has nothing to put it to. *Surely* means that the whole '
  'interval lies on one side of zero. Thresholds are ours, and apply to the value '
  'measured, not to the ends of its interval. The code of the rules is in '
  '`me_jax/plotting/sections` and, where runs are compared, in `study/paired.py`.'
)
GLOSSARY = (
  '**Residual stream**: the state of a token that each layer reads, and adds to, '
  'first by attention, then by its feed-forward network (FFN), each behind a '
  'norm (RMSNorm).',
  '**Massive activation**: an entry of the residual stream above a hundred and '
  "above a thousand times the median of its layer's. The **massive token** has "
  'them, mostly the first of a text, be it a word or a BOS token, which only '
  'marks the beginning. An **ordinary token** has none.',
  '**Spike**: the largest massive activation. **Plateau**: the layers over which '
  'it stays, and its size there; attention meets it a layer later, in what it '
  'reads. The **emergence**, or span, is the layers that write it; if it is one, it '
  'is the ME Layer. A **super weight** is the number by which a neuron writes '
  'into the channel of the spike. Without it the neuron still writes into other '
  'channels, which later norms make large where no spike stands beside them; '
  'without the whole neuron they are gone as well.',
  "**Share** of a write: its projection on the direction of the massive token's "
  'largest state, over the length of that state; shares of the embedding, of '
  'every attention and of every FFN sum to one. **Score** of a prediction from '
  'weights: the geometric mean of what a neuron can write into a channel and of '
  'how much of that all later FFNs take away; the *plain* score is the size of '
  'the weight that writes times the lengths of the rows of gate and up.',
  '**Attention sink**: a token that draws much attention whatever the text. Its '
  '**sink rate** is the share of heads and texts where it draws more than three '
  'tenths.',
  '**Mask** (WeMask, of the paper): takes a share, its **strength**, of some '
  'channels of what attention receives of the massive token, in layers after the '
  'emergence; no weight is trained. The published one takes the channels where the '
  'norm has its largest weights |γ|. **Gates** are factors on every channel of the '
  'same, trained. *By layer* is a mask whose strength was fitted for each layer. '
  'A mask is **baked** where a change of plain weights stands for it.',
  '**Effective rank**: how many directions vectors fill, as the exponential of '
  'the entropy of their spectrum; **participation** counts them by squares.',
  "**Divergence**: Kullback and Leibler's, of the predicted distributions of the "
  'next token, a mean over tokens.',
  '**Neutralised**: neurons are set to their mean over ordinary tokens; a norm is '
  '**flattened** where all its weights become their mean.',
)
QUICK = (
  '**This page was made with `--quick`: everything is tiny, to see that the '
  'commands work. Its numbers are no results.**'
)
METHODS = (
  'Every step is a command that a reader can give by itself; the study only '
  'keeps its report. Results are those of the commands below; `path/to/sets` and '
  '`out/study` stand for the folders that `--data` and `--out` named.'
)
MACHINE = '{cores} cores ({cpu}), {memory} GiB of memory, {system}'
MACHINES = (
  '{name}: {machines}. Seconds are by the clock, and load is how many processes '
  'of the machine ran or waited in the minute before the step began: other work '
  'made steps slower. Code is a hash of the sources that a step ran, and is empty '
  'where it was not kept.'
)
TEXTS_DATA = (
  'Prompts of the analyses: {prompts} ({count}, SHA-256 {prompt_hash}…), each '
  'with and without a BOS token where that makes a difference. Other texts: '
  'public sets in a folder, here called `{data}` (SHA-256 of its files '
  '{data_hash}…); tables name them. A text that a mask was chosen on, or that a '
  'model was trained on, is never one that it is measured on.'
)
TEXTS_BUILTIN = (
  'Prompts of the analyses: {prompts} ({count}, SHA-256 {prompt_hash}…). Other '
  'texts: the built-in ones, which are few; give `--data` for public sets.'
)
NUMERICS = (
  'Numerics: {dtype}, matrix products in `{precision}` precision, attention by '
  '{attention}, on {device}. Seed {seed} throughout, and one seed only.'
)
WEIGHTS = (
  'Weights: `{weights}`. The number after the Q in the name of a GGUF is the bits of '
  'each rounded number; they were rounded before anything here was measured.'
)
INTERVALS = (
  'Intervals are 95 % intervals. Those of losses, effects and differences are '
  'bootstrapped, over texts, items or distinct massive tokens, and differences '
  "are paired; those of shares are Wilson's. Where the analyses give a range "
  'instead, it is over all texts, and the sentence says so. No correction is made '
  'for the number of intervals: of as many as are on this page, a few exclude zero '
  'by chance.'
)
VERSIONS = 'Versions: {versions}.'
YOUNGER = 'the claim was added after these steps had run'
REMARK = 'To keep in mind.'
LEFT_OUT = (
  'Not run here: {tasks}. Of what they measure the verdict says nothing.'
)
NOT_TESTED = 'Not tested: {why}'
LIMITS = (
  "**The paper's result tables were not available to us.** Nothing here is "
  'compared with its numbers, only with its claims, in our words.',
  '**Small models.** The paper studies models of billions of parameters. What '
  'a small model does may differ, most of all in ability tasks, where it is '
  'near the floor: between two scores whose intervals hold that of guessing, as of '
  'MMLU with its four choices, a change need not be one of knowledge.',
  '**What counts as massive is a threshold.** A model may have smaller spikes in '
  'layers before the one that is named, and a lower threshold would begin there; '
  'of the default model `BUILD_NOTES.md` tells how near they come.',
  '**One layer writes, others prepare.** That one layer creates massive '
  'activations is said of who writes them into the residual stream. The state '
  'that it writes from is made by layers before it: the claim on norm and FFN '
  'says how much of the spike is left without theirs.',
  '**Not every number has an interval.** The prediction from weights is of one '
  'set of weights. Attention and effective ranks are means over texts and heads.',
  '**One seed.** Masks are deterministic; training runs, control tokens and '
  'random channels are drawn once.',
  '**Controls are not fitted.** The controls of the mask have its strengths, which '
  'were fitted to its own channels. With strengths fitted to them, random channels '
  'may come nearer; of the default model `BUILD_NOTES.md` tells how near.',
  '**Short runs, small sets.** Fine-tuning takes minutes to an hour here, and a '
  'task has at most some hundred items. A missing difference may be a lack of '
  'items: read the interval, not the word.',
  '**Many readings.** Verdicts follow thresholds that are ours. Some were '
  'changed after first results had been seen. That of rounding was, after a small '
  'run that it had called "does not hold"; the others ask for more than they did: '
  'that of the mask for less rigidity and for controls that are surely behind, '
  'that of what attention receives for a change without the token, that of '
  'answers for four tasks, that of two runs for no set that is surely worse, and '
  'that of baked weights for a small divergence. `CHANGELOG.md` tells of them. '
  'Another threshold may '
  'turn "in part" into another word; the numbers stand beside it.',
  '**Two runs.** In tables of two runs, *before* is where the first of them '
  'began, with its mask if it has one. Of the mask that was chosen, only what was '
  'measured before its run took a step is used. LoRA is taught answers alone; a '
  'loss of whole chats counts their prompts, too.',
  '**What is chosen on chats may not be about chats.** The first token of a chat '
  'is always the same, and of plain text it is not: gains on chats can come from '
  'that constant beginning. Losses of answers alone, and the control token, '
  'are there to tell.',
)
NEVER_TESTED = (
  'DPO and GRPO with the mask in the loop, which the paper trains with: the '
  'verb `train` does both, but not in the time of this study.',
  'Full fine-tuning with the mask, and runs of the length of those in the paper.',
  'Families other than those of the models above.',
  'What was measured of the default model apart from this study, such as all six '
  'tasks with shorter answers, and fine-tuning with the mask over three seeds, is '
  'told in `BUILD_NOTES.md`.',
)
REFERENCES = (
  'Sun, Chen, Kolter and Liu, *Massive Activations in Large Language Models*: '
  'the definition, and the test of what the model needs.',
  'Yu, Wang, Shan, Reed and Wan, *The Super Weight in Large Language Models*.',
  'Wilson, *Probable Inference, the Law of Succession, and Statistical '
  'Inference*: intervals of shares.',
  'Other sources stand in the docstrings of the functions; formulas in '
  '[Concepts](concepts.md).',
)
AGAIN = (
  '`make study STUDY=--data=path/to/sets` goes on where it was stopped, and runs '
  'again only what was made by another command, with other versions or on other '
  'data. With `--steps` some are run, and the others stay on the page as they '
  'are, unless they are compared with, or have read, what is replaced. `--help` '
  'names the steps and all flags. `python -m study.page` writes this page again '
  'from the extracts.'
)
