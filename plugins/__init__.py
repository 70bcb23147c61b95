"""Plugins that ship: they use the public hooks only, as a third party would."""
