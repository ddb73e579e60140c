"""Times the training step and the federation beside other implementations."""
