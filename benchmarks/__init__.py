"""What is measured: `python -m benchmarks.NAME` from the folder above; each writes into `benchmarks/results/`."""
