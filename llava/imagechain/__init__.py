"""ImageChain: everything that LLaVA-NeXT lacks, under one name so that the overlay replaces nothing else."""
