"""`make bench`: what a distilling step, a sweep, the data, the losses, a job's start and the service cost.

Every part is measured in a process of its own, on one thread, and can be measured anew alone (`python -m
benchmarks.bench --only step`). Ratios are of CPU seconds that were taken in turn in one process, or at once by
processes that share a core, so what else the machine does falls on both sides; the spread is that of the rounds. Writes
`benchmarks/results/bench.{json,md,png}`; what each part found lies in `benchmarks/results/bench/`.
"""
