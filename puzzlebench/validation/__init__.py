"""How wrong the cost model is: held-out kernels, unseen GPUs, measured serving runs."""
