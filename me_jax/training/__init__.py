"""Fine-tuning: which rows a step gets, what it changes, where the parts lie.

A run is one value (`settings`, `settings_check`, `overrides`; `public_sets` for
those in `configs`). `prepare` makes of it a model on its devices (`model_check`),
and `loop` takes the steps: `feed` gives the batch of each, `step` and `optimizer`
the new state, `objectives` what is made small.

A row of a file (`records`) becomes token ids with what is wanted of them
(`examples`), packed into rows of one length (`packing`), in an order that
depends on the step alone (`epoch`, `batches`, `data`). Scores of tokens never
hold a whole row of the vocabulary (`vocabulary_scan`, `column_scan`, `logprobs`);
losses are sums, so that they add up over parts of a batch (`losses`). Answers are
drawn (`rollouts`) and judged (`rewards`) where no row holds any. Only what is
trained is seen by an optimiser (`lora`, `trained`). Arrays are cut over the
devices of all processes by one table (`sharding`, `placement`, `distributed`).

Rows that nothing is learnt from are measured (`held_out`), and choose the step
that is kept (`judge`, `choosing`; `compared` is what a page says of them). Of
files, a run has its settings (`run_folder`), its numbers (`journal` decides when,
`metrics` writes, `flops`) and its checkpoints (`checkpoints` is the whole of it
for others, `checkpoint_card`, `checkpoint_manager` and `checkpoint_read` its
parts). What ends it before its time is in `stopping` and `runaway`.
"""
