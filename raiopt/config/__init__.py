"""The command's options: the hydra-zen store, parsing of command-line words, and building the job from them."""
