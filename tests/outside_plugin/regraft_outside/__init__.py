"""A plugin of a third party: its own distribution, found by its entry point."""
