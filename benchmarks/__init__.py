"""Speed, memory and correctness of the operators, the training step, the samplers and the evaluation.

``python -m benchmarks.run`` (or ``puma bench``) measures, ``python -m benchmarks.report`` turns result files into
tables and plots and compares two of them. One workload per subject (``subjects/``) serves all three questions. How a
figure comes about:

- Contestants of a case are first checked (operators against a float64 reference), then timed in turns in one process,
  in a random order per round, so that drift of the machine hits all of them alike (``timing``).
- Inputs rotate: as many sets as fill twice the last-level cache, up to 24, so that small ones may stay in a very large
  cache. Prompt matching has 8 sets, which may as well. All contestants of a case get the same sets.
- All contestants of a comparison make equally many calls per sample: the first one finds others' data in the caches.
- Every run measures its own ceilings, copy bandwidth and matrix product rate; each row says its share of the limit.
- On the CPU the main cases run with the C library's default allocator settings and again with raised thresholds: page
  faults cost some implementations far more than others. Tables quote the ratio that flatters this package least, and
  mark the cases that were measured in one setting only.
"""
