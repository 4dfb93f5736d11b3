"""Fine-tuning: which rows a step gets, and how far off its predictions are.

A row of a file (`records`) becomes token ids with what is wanted of them
(`examples`), packed into rows of one length (`packing`), in an order that
depends on the step alone (`epoch`, `batches`, `data`). Scores of tokens never
hold a whole row of the vocabulary (`vocabulary_scan`, `logprobs`); losses are
sums, so that they add up over parts of a batch (`losses`). Models, states and
batches lie on devices as one table says (`sharding`, `placement`), over as many
processes as there are (`distributed`).
"""
