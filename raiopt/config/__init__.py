"""The command's options: the hydra-zen store, the words that set them, and the job that they describe."""
