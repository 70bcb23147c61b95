"""Sites: the places of a Program that grafts can stand in for."""

from compiler.sites.site import Refusal, Site

__all__ = ["Refusal", "Site"]
