"""Fine-tuning: which rows a step gets, what it changes, where the parts lie.

A row of a file (`records`) becomes token ids with what is wanted of them
(`examples`), packed into rows of one length (`packing`), in an order that
depends on the step alone (`epoch`, `batches`, `data`). Scores of tokens never
hold a whole row of the vocabulary (`vocabulary_scan`, `logprobs`); losses are
sums, so that they add up over parts of a batch (`losses`). Answers are drawn
(`rollouts`) and judged (`rewards`) where no row holds any. Only what is trained
is seen by an optimiser (`lora`, `trained`). Arrays are cut over the devices of
all processes by one table (`sharding`, `placement`, `distributed`).
"""
