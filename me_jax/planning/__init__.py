"""Plans: what a run would need on machines that are not here.

The files, in reading order:

  topology      a name of a pod or a cluster becomes devices to compile for
  chips         what a chip can do, by its maker's figures
  known_models  the configuration of a model whose weights are not at hand
  programs      what a run of training hands to the compiler
  analyses      what `find` and `diagnose` hand to it, and a plain pass
  chunks        how many queries' scores an analysis has at a time
  rollouts      what drawing answers hands to it: prefill and decode
  workload      which of these a run needs, and what lies beside each
  compile       what the compiler makes of one: memory, cost, text
  cached        whether it was compiled before
  hlo           the text's collectives, arithmetic, traffic and buffers
  hlo_text      how the text is put together
  hlo_loops     how often loops repeat each part
  hlo_groups    which devices exchange, over which wires
  hlo_cost      FLOPs, and bytes of main memory
  roofline      how long all that takes, at best and without overlap
  checks        whether a program is sound at scale
  planned       all of this of one program
  plan          all programs of a run: what `me-jax plan` prints
  guess         memory and time of a step by arithmetic, uncompiled
  search        which mesh and settings suit a run best
  amounts       bytes and times, for people
"""
