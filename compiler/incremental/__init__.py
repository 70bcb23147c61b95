"""From a Program over whole sequences to one that reads new tokens and keeps states: the parts of `make-incremental`."""
