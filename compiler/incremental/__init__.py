"""The parts of `make-incremental`: from whole sequences to new tokens and states."""
